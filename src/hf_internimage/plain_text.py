# SPDX-License-Identifier: MIT
"""Words and tables as people read them in messages and on a terminal."""

import sys
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


def count_of(count: int, thing: str) -> str:
    """Return "1 image" or "1,200 images"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def listed(names: Sequence[object], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def show(text: str) -> None:
    """Write lines to the terminal at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


__all__ = ["count_of", "listed", "show", "text_table"]
