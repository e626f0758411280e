# SPDX-License-Identifier: MIT
"""Tables as text: columns as wide as their widest entry, numbers to the right, no space at the end of a line."""

from hf_internimage.plain_text import text_table


def test_text_table():
    rows = [("t", 29.9, "mit"), ("xl", 1334, "")]
    assert text_table(("size", "parameters", "licence"), rows, right=("parameters",)).splitlines() == [
        "size  parameters  licence",
        "t           29.9  mit",
        "xl          1334",
    ]
    assert text_table(("name",), []) == "name"
