# SPDX-License-Identifier: MIT
"""Convert an InternImage checkpoint of the original release into a folder that `from_pretrained` loads.

Reads the original's .pth files of every system in `SYSTEMS` of hf_internimage.conversion.systems, files from upstream
training, and classifiers already in the Hub's layout. The tensors tell the system, and the name of the file tells the
test settings. Every tensor's name and shape is checked before anything is written, and the folder appears complete or
not at all.

    python scripts/convert_checkpoint.py internimage_t_1k_224.pth internimage-t
    python scripts/convert_checkpoint.py internimage_l_22k_192to384.pth internimage-l-1k --head-map map22kto1k.txt
    python scripts/convert_checkpoint.py upernet_internimage_t_512_160k_ade20k.pth upernet-internimage-t
"""

import sys

from hf_internimage.conversion.main import main

if __name__ == "__main__":
    sys.exit(main())
