"""Aligned Markdown tables."""

from collections.abc import Sequence

__all__ = ["markdown"]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Align a table, its first column to the left and the others to the right.

    Args:
        rows: The headings, then the texts of each row, whose bars are escaped and whose lines become one.

    Returns:
        Lines without a newline at the end.
    """
    rows = [[" ".join(cell.replace("|", r"\|").split()) for cell in row] for row in rows]
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        f"| {row[0]:<{widths[0]}} | {' | '.join(map(str.rjust, row[1:], widths[1:]))} |"
        for row in (rows[0], rule, *rows[1:])
    )
