# SPDX-License-Identifier: MIT
"""Write the model cards in model_cards/, or the card of one model from its own evaluation. See --help."""

import sys
from pathlib import Path

from hf_internimage.hub.card_files import main

if __name__ == "__main__":
    sys.exit(main(checkout=Path(__file__).resolve().parent.parent))
