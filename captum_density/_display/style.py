"""What all pictures share: colours, marks, and room for texts."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

__all__ = ["CHARACTER", "COLORS", "LINE", "MARKS", "STYLES", "lines_of", "longest_line", "write_caption"]

# Okabe and Ito's, told apart with every common colour vision deficiency; marks tell them apart in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", ":", "-.")

# Inches of a text of size "medium", which a picture gains so that what is drawn keeps its size.
CHARACTER = 0.08
LINE = 0.2
_RELATIVE = {"small": 0.85, "medium": 1.0}


def longest_line(texts: Sequence[str] | None) -> int:
    """How many characters the longest line of some texts has."""
    return max((len(line) for text in texts or () for line in text.split("\n")), default=0)


def lines_of(caption: str | None, width: float, fontsize: str = "small") -> list[str]:
    """The caption's lines, its own kept, longer ones than fit into a picture `width` inches wide broken."""
    if caption is None:
        return []
    characters = max(10, int(width / (CHARACTER * _RELATIVE[fontsize])))
    return [part for line in caption.split("\n") for part in textwrap.wrap(line, characters) or [""]]


def write_caption(figure: Figure, lines: Sequence[str], fontsize: str = "small") -> None:
    """Write lines below, if there are any."""
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=fontsize)
