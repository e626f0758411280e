# SPDX-License-Identifier: MIT
"""Write Markdown tables and numbers, for the reports of all benchmarks. Needs only the standard library."""

from collections.abc import Iterable, Mapping

DASH = "–"  # noqa: RUF001  a value that was not measured


def table_line(cells: Iterable[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def table(texts: list[str], numbers: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table whose last columns are numbers, aligned at the right.

    Args:
        texts: heads of the columns of text.
        numbers: heads of the columns of numbers, which follow.
        rows: cells of each line.
    """
    heads = [table_line([*texts, *numbers]), table_line(["---"] * len(texts) + ["---:"] * len(numbers))]
    return [*heads, *map(table_line, rows)]


def number(value: float | None) -> str:
    """Return three significant digits, without an exponent; a dash for None."""
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def percent(value: float) -> str:
    """Return a share as percent, with one decimal digit."""
    return f"{value:.1%}"


def one_line(text: object, longest: int = 200) -> str:
    """Return a text in one line, cut to so many characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def left_out_sentences(rows: Iterable[Mapping]) -> list[str]:
    """Return a sentence for each competitor that could not run a case, with an empty line before each."""
    reasons = [(row["name"], *reason) for row in rows for reason in row.get("left_out", {}).items()]
    return [
        line for case, name, reason in reasons for line in ("", f"Left out of {case}: `{name}` ({one_line(reason)}).")
    ]
