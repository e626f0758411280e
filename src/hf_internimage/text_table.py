# SPDX-License-Identifier: MIT
"""Lay out a table as plain text for a terminal."""

from collections.abc import Sequence


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> str:
    """Return a table with one line for the names of the columns and one for each row, without a line break at the end.

    Args:
        columns: names of the columns.
        rows: entries of each row, one for each column.
        right: names of the columns whose entries are aligned to the right.
    """
    lines = [list(columns), *([str(entry) for entry in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    aligned = [
        [
            entry.rjust(width) if name in right else entry.ljust(width)
            for name, entry, width in zip(columns, line, widths, strict=True)
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


__all__ = ["text_table"]
