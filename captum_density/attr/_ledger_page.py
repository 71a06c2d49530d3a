"""A ledger to look at: a page of coloured tokens and heat maps, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["ledger_picture", "ledger_section", "page"]

# Orange speaks for the logit, blue against it: told apart with every common colour vision deficiency.
_FOR, _AGAINST = (213, 94, 0), (0, 114, 178)

# Every rule begins with the fragment's class, so that a notebook around it stays as it is.
_STYLE = """
.captum-ledger {font: 1rem/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; padding: .1rem 1rem 1rem;
  color-scheme: light; text-align: left}
.captum-ledger h2 {font-size: 1.1rem; margin: 1.2rem 0 .2rem; color: inherit}
.captum-ledger p {margin: .2rem 0 .5rem; color: inherit}
.captum-ledger .about {color: #4d4d4d; font-size: .9rem}
.captum-ledger .tokens {line-height: 2.1}
.captum-ledger .tokens span {padding: .15rem .25rem; border-radius: .2rem; white-space: pre-wrap; color: #000}
.captum-ledger .scroll {overflow-x: auto}
.captum-ledger table {border-collapse: collapse; font-size: .8rem; color: inherit; width: auto; margin: 0}
.captum-ledger th, .captum-ledger td {padding: .1rem .3rem; text-align: right; white-space: pre; color: #000;
  border: 1px solid #fff; min-width: 2.6rem; background: #fff}
.captum-ledger th {font-weight: 400; color: #4d4d4d}
.captum-ledger thead th {vertical-align: bottom; text-align: center}
.captum-ledger td.sum, .captum-ledger th.sum {border-left: 2px solid #999}
"""


def page(sections: Sequence[str]) -> str:
    """A page of sections, which is a fragment for a notebook, too."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Ledger</title>\n</head>\n<body>\n'
        f'<div class="captum-ledger">\n<style>{_STYLE}</style>\n' + "\n".join(sections) + "\n</div>\n</body>\n</html>\n"
    )


def ledger_section(
    title: str, output: float, gap: float, tokens: Sequence[str], layers: Sequence[str], table: Tensor
) -> str:
    """One explained token: its output, the tokens in colours, and the heat map of layers and tokens.

    Args:
        title: What is explained.
        output: Its logit.
        gap: How far the table is from it, as `Ledger.gap`.
        tokens: The P tokens.
        layers: The K layers.
        table: (K, P + 1, 3) as `Ledger.table`.
    """
    table = table.double().cpu()
    own = table.sum((0, 1)).tolist()
    parts = ", ".join(f"{name} {value:.4g}" for name, value in zip(("input", "bias", "remainder"), own, strict=True))
    scores = table[:, :-1, 0].sum(0).tolist()
    return "\n".join(
        [
            f"<section>\n<h2>{escape(title)}</h2>",
            f'<p>{output:.5g} = {escape(parts)} <span class="about">(gap {gap:.1g})</span></p>',
            f'<p class="tokens">{_coloured(tokens, scores)}</p>',
            '<p class="about">What the tokens themselves have: orange speaks for it, blue against it. Below, all that '
            "sits at a token in a layer: input, bias and remainder.</p>",
            f'<div class="scroll">{_heat_map(tokens, layers, table.sum(2))}</div>\n</section>',
        ]
    )


def _coloured(tokens: Sequence[str], scores: Sequence[float]) -> str:
    largest = max(map(abs, scores), default=0.0)
    return " ".join(
        f'<span style="{_colour(score, largest)}" title="{score:.4g}">{escape(token)}</span>'
        for token, score in zip(tokens, scores, strict=True)
    )


def _heat_map(tokens: Sequence[str], layers: Sequence[str], cells: Tensor) -> str:
    largest, tokens = float(cells.abs().max()), [*tokens, "no position"]
    if not cells[:, -1].any():
        cells, tokens = cells[:, :-1], tokens[:-1]
    head = "".join(f"<th>{escape(token)}</th>" for token in tokens)
    head = f'<tr><th>layer</th>{head}<th class="sum">sum</th></tr>'
    body = []
    for name, row in zip(layers, cells.tolist(), strict=True):
        shown = "".join(f'<td style="{_colour(value, largest)}">{value:.2g}</td>' for value in row)
        body.append(f'<tr><th>{escape(name)}</th>{shown}<td class="sum">{sum(row):.3g}</td></tr>')
    sums = "".join(f"<td>{value:.3g}</td>" for value in cells.sum(0).tolist())
    body.append(f'<tr><th>sum</th>{sums}<td class="sum">{float(cells.sum()):.4g}</td></tr>')
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>"


def _colour(value: float, largest: float) -> str:
    """White at 0, half of the colour at the largest, so that black text can be read on it."""
    share = 0.0 if largest == 0 else 0.6 * min(abs(value) / largest, 1.0)
    ends = _FOR if value > 0 else _AGAINST
    return "background: rgb({}, {}, {})".format(*(round(255 + share * (end - 255)) for end in ends))


def ledger_picture(title: str, output: float, tokens: Sequence[str], layers: Sequence[str], table: Tensor) -> Figure:
    """A heat map of layers and positions, and below it the sums of each position by kind.

    Args:
        title: As `ledger_section`.
        output: As `ledger_section`.
        tokens: As `ledger_section`.
        layers: As `ledger_section`.
        table: As `ledger_section`.
    """
    table = table.double().cpu()
    cells, kinds = table.sum(2), table.sum(0)
    names = [*(token.replace("$", r"\$") for token in tokens), "no position"]
    figure = Figure(layout="constrained", figsize=(max(5.0, 0.32 * len(names) + 2), 0.25 * len(layers) + 3.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[len(layers) + 1, 8])
    bound = float(cells.abs().max()) or 1.0
    image = above.imshow(cells.numpy(), aspect="auto", cmap="PuOr_r", vmin=-bound, vmax=bound)
    above.set_yticks(range(len(layers)), layers)
    above.set_ylabel("layer")
    above.set_title(f"{title} = {output:.4g}".replace("$", r"\$"), fontsize="medium")
    figure.colorbar(image, ax=above, label="share of the logit")
    colours = ("#D55E00", "#56B4E9", "#999999")
    width = 0.27
    for i, (name, colour) in enumerate(zip(("input", "bias", "remainder"), colours, strict=True)):
        at = [p + (i - 1) * width for p in range(len(names))]
        below.bar(at, kinds[:, i].numpy(), width, color=colour, label=name)
    below.axhline(0.0, color="grey", linewidth=0.8)
    every = max(1, len(names) // 60)
    below.set_xticks(range(0, len(names), every), names[::every], rotation=90)
    below.set_ylabel("sum over layers")
    below.legend(fontsize="small")
    return figure
