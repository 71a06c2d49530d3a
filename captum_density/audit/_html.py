"""An audit as a page: one file, pictures inside, for screens of any width, for print and for a screen reader."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from captum_density.audit._measures import MEASURES, Measured
from captum_density.audit._pictures import described, draw_figures

if TYPE_CHECKING:
    from captum_density.audit._report import AuditReport

__all__ = ["fragment", "page"]

_KINDS = {"good": "in favour", "warning": "against", "note": "note"}

# Every rule begins with the fragment's class, so that a notebook around it stays as it is. Colours keep a contrast of
# at least 4.5 with their ground, and every colour comes with a word.
_STYLE = """
.captum-density {font: 1rem/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 70rem;
  margin: 0 auto; padding: 0 1rem 2rem; overflow-wrap: break-word}
.captum-density h1 {font-size: 1.5rem; line-height: 1.25; margin: 1rem 0 .25rem}
.captum-density h2 {font-size: 1.15rem; margin: 2rem 0 .5rem}
.captum-density .verdict {font-size: 1.15rem; font-weight: 600; margin: .25rem 0}
.captum-density .about, .captum-density .small {color: #4d4d4d; font-size: .9rem}
.captum-density ul.findings {list-style: none; padding: 0; margin: 0}
.captum-density ul.findings li {border-left: .3rem solid #767676; padding: .1rem 0 .1rem .75rem; margin: .6rem 0}
.captum-density ul.findings li.warning {border-color: #b34700}
.captum-density ul.findings li.good {border-color: #005a92}
.captum-density .kind {font-weight: 600; margin-right: .35rem}
.captum-density .advice {display: block; color: #333}
.captum-density .scroll {overflow-x: auto}
.captum-density table {border-collapse: collapse; width: 100%; font-size: .9rem; color: inherit}
.captum-density th, .captum-density td {text-align: right; padding: .3rem .5rem; border-bottom: 1px solid #ccc;
  vertical-align: top; white-space: nowrap; background: none; color: inherit; max-width: none}
.captum-density th[scope=row], .captum-density th:first-child, .captum-density .words {text-align: left;
  white-space: normal}
.captum-density th, .captum-density td small {white-space: normal}
.captum-density td small {display: block; color: #4d4d4d; min-width: 8rem}
.captum-density .failed {color: #9c2c00; font-weight: 600}
.captum-density .panels {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  gap: 1rem}
.captum-density figure {margin: 0; break-inside: avoid}
.captum-density img {max-width: 100%; height: auto; background: #fff}
.captum-density .wide img {min-width: 40rem}
.captum-density dt {font-weight: 600; margin-top: .5rem}
.captum-density dd {margin: 0}
@media (max-width: 40rem) {
  .captum-density table, .captum-density tbody, .captum-density tr, .captum-density td,
  .captum-density th[scope=row] {display: block; text-align: left}
  .captum-density thead {position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden}
  .captum-density tr {border-bottom: 2px solid #999; padding: .5rem 0}
  .captum-density td, .captum-density th[scope=row] {border: 0; padding: .1rem 0; white-space: normal}
  .captum-density td[data-label]::before {content: attr(data-label) ": "; color: #4d4d4d}
  .captum-density td small {display: inline; margin-left: .35rem}
}
@media print {
  .captum-density {font-size: 10pt; max-width: none; padding: 0}
  .captum-density table {font-size: 8pt}
  .captum-density .scroll {overflow: visible}
  .captum-density .wide img {min-width: 0}
  .captum-density tr, .captum-density li {break-inside: avoid}
  .captum-density h2 {break-after: avoid}
}
"""


def page(report: AuditReport) -> str:
    """The whole page; its policy forbids a browser to load anything."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>Audit of {escape(str(report.settings['model']))}</title>\n"
        f"<style>body {{margin: 0; background: #fff}}{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{_body(report)}\n</main>\n</body>\n</html>\n"
    )


def fragment(report: AuditReport) -> str:
    """The same for a notebook."""
    return f"<style>{_STYLE}</style>\n{_body(report)}"


def _body(report: AuditReport) -> str:
    parts = [
        '<div class="captum-density">',
        "<h1>Can I trust this model's gradients?</h1>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        f'<p class="about">{escape(_about(report))}</p>',
        "<h2>What the figures say, and what to do next</h2>",
        _findings(report),
        _model(report),
        _methods(report),
        _panels(report),
        _maps(report),
        _meanings(report),
        _skipped(report),
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def _about(report: AuditReport) -> str:
    settings = report.settings
    shape = " x ".join(map(str, settings["shape"]))
    return (
        f"{settings['model']}: {settings['classes']} outputs, {settings['examples']} examples of shape {shape}, seed "
        f"{settings['seed']}, on {settings['device']}, PyTorch {settings['torch']}."
    )


def _findings(report: AuditReport) -> str:
    items = []
    for found in report.findings:
        advice = f' <span class="advice">{escape(found.advice)}</span>' if found.advice else ""
        kind = f'<span class="kind">{_KINDS[found.kind]}:</span>'
        items.append(f'<li class="{found.kind}">{kind}{escape(found.text)}{advice}</li>')
    return f'<ul class="findings">\n{chr(10).join(items)}\n</ul>'


def _model(report: AuditReport) -> str:
    if not report.model:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(MEASURES[each].title)}</th>{_cell(figure, "found")}'
        f'<td class="words" data-label="better">{escape(MEASURES[each].better)}</td>'
        f'<td class="words" data-label="meaning">{escape(MEASURES[each].meaning)}</td></tr>'
        for each, figure in report.model.items()
    ]
    heads = '<th scope="col">figure</th><th scope="col">found</th>' + "".join(
        f'<th scope="col" class="words">{head}</th>' for head in ("better", "meaning")
    )
    return f"<h2>The model</h2>\n{_table(heads, rows)}"


def _methods(report: AuditReport) -> str:
    columns = [each for each in MEASURES if any(each in figures for figures in report.methods.values())]
    if not columns:
        return ""
    rows = []
    for name, figures in report.methods.items():
        cells = "".join(_cell(figures[each], MEASURES[each].title) for each in columns)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    heads = '<th scope="col">method</th>' + "".join(
        f'<th scope="col">{escape(MEASURES[each].title)}<br><small>{escape(MEASURES[each].better)}</small></th>'
        for each in columns
    )
    note = (
        '<p class="small">Means over the examples, ± standard deviation over them, or [95% interval of the mean].</p>'
    )
    return f"<h2>The attribution methods</h2>\n{_table(heads, rows)}\n{note}"


def _table(heads: str, rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(figure: Measured, label: str) -> str:
    text = escape(figure.text())
    if figure.failed:
        text = f'<span class="failed">{text}</span>'
    note = f"<small>{escape(figure.note)}</small>" if figure.failed else ""
    return f'<td data-label="{escape(label)}">{text}{note}</td>'


def _panels(report: AuditReport) -> str:
    drawn = []
    for each in MEASURES:
        if any(each in figures and figures[each].value is not None for figures in report.methods.values()):
            drawn.append(_image(draw_figures(report.methods, [each]), described(report.methods, each)))
    if not drawn:
        return ""
    return f'<h2>The methods compared</h2>\n<div class="panels">\n{chr(10).join(drawn)}\n</div>'


def _maps(report: AuditReport) -> str:
    try:
        figure = report.maps()
    except ValueError:
        return ""
    shown = report.shown
    assert shown is not None
    text = (
        f"{len(shown.images)} of the audited images, of the explained classes {', '.join(map(str, shown.targets))}, "
        "each "
        f"beside its attributions by {', '.join(shown.maps)}; every map is on a scale of its own."
    )
    return f'<h2>What the methods show</h2>\n<div class="scroll wide">{_image(figure, text)}</div>'


def _image(figure: Figure, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _meanings(report: AuditReport) -> str:
    shown = [each for each in MEASURES if any(each in figures for figures in report.methods.values())]
    if not shown:
        return ""
    items = "\n".join(
        f"<dt>{escape(MEASURES[each].title)} ({escape(MEASURES[each].better)})</dt>"
        f"<dd>{escape(MEASURES[each].meaning)}</dd>"
        for each in shown
    )
    return f"<h2>What the methods' figures mean</h2>\n<dl>\n{items}\n</dl>"


def _skipped(report: AuditReport) -> str:
    if not report.skipped:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in report.skipped)
    return f"<h2>{len(report.skipped)} examples could not be read and were skipped</h2>\n<ul>{items}</ul>"
