# SPDX-License-Identifier: MIT
"""Folders of the checkout."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
BENCHMARKS, DOCS, SCRIPTS = (ROOT / name for name in ("benchmarks", "docs", "scripts"))
RECIPE_FOLDER = ROOT / "src" / "hf_internimage_cli" / "recipes"
GOLDEN = TESTS / "golden"
