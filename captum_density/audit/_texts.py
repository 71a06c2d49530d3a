"""Texts on an audit's page: their tokens in colour, as text that wraps, can be searched and is read out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from captum_density.audit._maps import Maps

__all__ = ["TEXT_STYLE", "texts"]

_LEVELS = 8  # of colour, for each sign
_POSITIVE, _NEGATIVE = (0xF1, 0xA3, 0x40), (0x99, 0x8E, 0xC3)  # black on the deepest has a contrast of 5 and more


def _ground(colour: tuple[int, int, int], level: int) -> str:
    return "#" + "".join(f"{round(255 + (part - 255) * level / _LEVELS):02x}" for part in colour)


# Negative tokens have a dotted line as well, for those who do not see the colours, and for print without them.
TEXT_STYLE = "\n".join(
    [
        ".captum-density .tokens {margin: .15rem 0; line-height: 1.9}",
        ".captum-density .tokens .method {display: inline-block; min-width: 9rem; padding-right: .5rem}",
        ".captum-density .token {padding: .1rem .2rem; white-space: pre-wrap; color: #1b1b1b; "
        "print-color-adjust: exact; -webkit-print-color-adjust: exact}",
        *(
            f".captum-density .{sign}{level} {{background: {_ground(colour, level)}{line}}}"
            for sign, colour, line in (
                ("p", _POSITIVE, ""),
                ("n", _NEGATIVE, "; border-bottom: 2px dotted #542788"),
            )
            for level in range(1, _LEVELS + 1)
        ),
        "@media (max-width: 40rem) {\n  .captum-density .tokens .method {display: block}\n}\n",
    ]
)
_CAPTION = (
    "Orange tokens speak for the explained output, purple ones with a dotted line against it, as the method has it; "
    "maps without signs are orange throughout. The deeper the colour, the more: in each line, the strongest token has "
    "the deepest, so that colours compare tokens within a line, not lines. A token's title is its share of the "
    "strongest."
)


def texts(maps: Maps) -> str:
    """A part for each text: what is predicted and the label, and a line of tokens for each method."""
    parts = [f'<p class="small">{_CAPTION}</p>']
    for i, (tokens, label) in enumerate(zip(maps.tokens, maps.row_labels, strict=True)):
        parts.append(f"<h3>{escape(', '.join(label.splitlines()))}</h3>")
        lines = {name: _values(values[i, 0].tolist(), len(tokens)) for name, values in maps.maps.items()}
        # Padding at the end, to which no method gives anything, is counted.
        coloured = [k for k in range(len(tokens)) if any(_colour(values[k]) for values in lines.values())]
        end = coloured[-1] + 1 if coloured and coloured[-1] + 2 < len(tokens) else len(tokens)
        rest = f' <span class="small">and {len(tokens) - end} more without colour</span>' if end < len(tokens) else ""
        parts += [_line(name, tokens[:end], values[:end], rest) for name, values in lines.items()]
    return "\n".join(parts)


def _values(values: list[float], length: int) -> list[float]:
    """One for each token; maps of long texts have fewer, each of some tokens."""
    return [values[k * len(values) // length] for k in range(length)]


def _line(method: str, tokens: Sequence[str], values: list[float], rest: str) -> str:
    spans = " ".join(
        f'<span class="token{_colour(value)}" title="{value:.2g}">{escape(token) or "&nbsp;"}</span>'
        for token, value in zip(tokens, values, strict=True)
    )
    return f'<p class="tokens"><span class="kind method">{escape(method)}</span> {spans}{rest}</p>'


def _colour(value: float) -> str:
    level = round(min(1.0, abs(value)) * _LEVELS)
    return f" {'p' if value > 0 else 'n'}{level}" if level else ""
