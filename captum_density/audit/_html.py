"""An audit as a page: one file, pictures inside, for screens of any width, for print and for a screen reader."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from captum_density.audit._measures import MEASURES, Measured, counted_examples
from captum_density.audit._pictures import CAPTION, described, draw_figures, draw_maps

if TYPE_CHECKING:
    from captum_density.audit._report import AuditReport

__all__ = ["KINDS", "fragment", "page"]

KINDS = {"good": "in favour", "warning": "against", "note": "note"}
_FAILED = '<span class="failed">failed</span>'
_DPI = 96  # a page's inch; pictures have twice as many pixels, for screens that do and for print
_MAPS = 6  # at most so many maps side by side

# Every rule begins with the fragment's class, so that a notebook around it stays as it is. Colours keep a contrast of
# at least 4.5 with their ground, and every colour comes with a word.
_STYLE = """
.captum-density {font: 1rem/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 78rem;
  margin: 0 auto; padding: .1rem 1rem 2rem; overflow-wrap: anywhere; color-scheme: light; text-align: left}
.captum-density h1 {font-size: 1.5rem; line-height: 1.25; margin: 1rem 0 .25rem; color: inherit}
.captum-density h2 {font-size: 1.15rem; margin: 2rem 0 .5rem; color: inherit}
.captum-density .verdict {font-size: 1.15rem; font-weight: 600; margin: .25rem 0}
.captum-density .about, .captum-density .small {color: #4d4d4d; font-size: .9rem}
.captum-density ul.findings {list-style: none; padding: 0; margin: 0}
.captum-density ul.findings li {border-left: .3rem solid #767676; padding: .1rem 0 .1rem .75rem; margin: .6rem 0}
.captum-density ul.findings li.warning {border-color: #b34700}
.captum-density ul.findings li.good {border-color: #005a92}
.captum-density .kind {font-weight: 600}
.captum-density .advice {display: block; color: #333}
.captum-density .advice code {font-size: .9em; color: inherit; background: #f2f2f2}
.captum-density .scroll {overflow-x: auto}
.captum-density table {border-collapse: collapse; table-layout: auto; width: 100%; font-size: .9rem; color: inherit;
  margin: 0}
.captum-density th, .captum-density td {text-align: right; padding: .3rem .4rem; border-bottom: 1px solid #ccc;
  vertical-align: top; white-space: nowrap; background: #fff; color: inherit; max-width: none; overflow-wrap: normal;
  line-height: 1.4}
.captum-density th, .captum-density .words, .captum-density td small {white-space: normal}
.captum-density th[scope=row], .captum-density th:first-child, .captum-density .words {text-align: left}
.captum-density th[scope=row] {min-width: 9rem; max-width: 18rem; overflow-wrap: break-word}
.captum-density tr.partly th, .captum-density tr.partly td {border-bottom: 0}
.captum-density .words, .captum-density td small {overflow-wrap: anywhere}
.captum-density td small {display: block; color: #4d4d4d; min-width: 8rem}
.captum-density .failed {color: #9c2c00; font-weight: 600}
.captum-density .panels {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
  gap: 1rem}
.captum-density figure {margin: 0 0 1rem; break-inside: avoid}
.captum-density img {max-width: 100%; height: auto; background: #fff}
.captum-density .scroll img {max-width: none}
.captum-density dt {font-weight: 600; margin-top: .5rem}
.captum-density dd {margin: 0}
@media (max-width: 40rem) {
  .captum-density table, .captum-density tbody, .captum-density tr, .captum-density td,
  .captum-density th[scope=row] {display: block; text-align: left; max-width: none}
  .captum-density thead {position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden}
  .captum-density tr {border-bottom: 2px solid #999; padding: .5rem 0}
  .captum-density tr.partly {border-bottom: 0; padding-bottom: 0}
  .captum-density td, .captum-density th[scope=row] {border: 0; padding: .1rem 0; white-space: normal}
  .captum-density td[data-label]:not(.words) {display: flex; flex-wrap: wrap; justify-content: space-between;
    gap: 0 1rem}
  .captum-density td[data-label]::before {content: attr(data-label) ": "; color: #4d4d4d}
}
@media print {
  .captum-density {font-size: 10pt; max-width: none; padding: 0}
  .captum-density .about, .captum-density .small {font-size: 9pt}
  .captum-density table {font-size: 7pt}
  .captum-density th, .captum-density td {padding: .15rem .2rem}
  .captum-density th[scope=row] {min-width: 5rem; overflow-wrap: anywhere}
  .captum-density .scroll {overflow: visible}
  .captum-density .scroll img {max-width: 100%; max-height: 4.2in; width: auto}
  .captum-density tr, .captum-density li {break-inside: avoid}
  .captum-density h2, .captum-density dt {break-after: avoid}
}
"""


def page(report: AuditReport) -> str:
    """The whole page; its policy forbids a browser to load anything."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\">\n<title>Audit of {escape(str(report.settings['model']))}</title>\n<style>body "
        f"{{margin: 0; background: #fff}}{_STYLE}</style>\n</head>\n"
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
        code = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(found.advice))
        advice = f' <span class="advice">{code}</span>' if code else ""
        kind = f'<span class="kind">{KINDS[found.kind]}:</span>'
        items.append(f'<li class="{found.kind}">{kind} {escape(found.text)}{advice}</li>')
    return f'<ul class="findings">\n{chr(10).join(items)}\n</ul>'


def _model(report: AuditReport) -> str:
    if not report.model:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(MEASURES[each].title)}</th>{_cell(figure, "found", with_note=True)}'
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
    rows = [row for name, figures in report.methods.items() for row in _rows(name, figures, columns)]
    heads = '<th scope="col">method</th>' + "".join(
        f'<th scope="col">{escape(MEASURES[each].title)}<br><small>{escape(MEASURES[each].better)}</small></th>'
        for each in columns
    )
    lines = ["Means over the examples, ± standard deviation over them, or [95% interval of the mean]."]
    lines += [f"No {MEASURES[each].title}, '-': {note}." for each in columns for note in _why_none(report, each)]
    notes = "\n".join(f'<p class="small">{escape(line)}</p>' for line in lines)
    return f"<h2>The attribution methods</h2>\n{_table(heads, rows)}\n{notes}"


def _rows(name: str, figures: Mapping[str, Measured], columns: list[str]) -> Iterator[str]:
    """A method's row; each error once, in place of the figures or, where there are some, in a row below."""
    head = f'<th scope="row">{escape(name)}</th>'
    errors = {each: figures[each].note for each in columns if figures[each].failed}
    if len(errors) == len(columns) and len(set(errors.values())) == 1:
        note = next(iter(errors.values()))
        yield f'<tr>{head}<td class="words" colspan="{len(columns)}">{_FAILED}: {escape(note)}</td></tr>'
        return
    cells = "".join(_cell(figures[each], MEASURES[each].title) for each in columns)
    why = "".join(
        f"<div>{_FAILED} at {escape(', '.join(MEASURES[each].title for each in errors if errors[each] == note))}: "
        f"{escape(note)}</div>"
        for note in dict.fromkeys(errors.values())
    )
    row = '<tr class="partly">' if why else "<tr>"
    yield f"{row}{head}{cells}</tr>"
    if why:
        yield f'<tr><td class="words" colspan="{1 + len(columns)}">{why}</td></tr>'


def _why_none(report: AuditReport, each: str) -> list[str]:
    figures = [row[each] for row in report.methods.values()]
    return list(dict.fromkeys(f.note for f in figures if f.value is None and f.note and not f.failed))


def _table(heads: str, rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(figure: Measured, label: str, with_note: bool = False) -> str:
    text = _FAILED if figure.failed else f"<span>{escape(figure.text())}</span>"
    note = f"<small>{escape(figure.note)}</small>" if with_note and figure.note else ""
    return f'<td data-label="{escape(label)}">{text}{note}</td>'


def _panels(report: AuditReport) -> str:
    drawn = []
    for each in MEASURES:
        if any(each in figures and figures[each].value is not None for figures in report.methods.values()):
            figure = draw_figures(report.methods, [each], panel=2.2)
            drawn.append(_image(figure, described(report.methods, each)))
    if not drawn:
        return ""
    return f'<h2>The methods compared</h2>\n<div class="panels">\n{chr(10).join(drawn)}\n</div>'


def _maps(report: AuditReport) -> str:
    shown = report.shown
    if shown is None or not shown.maps or not len(shown.images):
        return ""
    names = list(shown.maps)
    groups = -(-len(names) // _MAPS)
    size = -(-len(names) // groups)
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    drawn = []
    for part in parts:
        figure = draw_maps(replace(shown, maps={name: shown.maps[name] for name in part}), caption=False)
        text = (
            f"{len(shown.images)} of the audited images, of the explained classes "
            f"{', '.join(map(str, shown.targets))}, each beside its attributions by {', '.join(part)}"
        )
        drawn.append(f'<div class="scroll">{_image(figure, text)}</div>')
    return (
        f"<h2>What the methods show</h2>\n{chr(10).join(drawn)}\n"
        f'<p class="small">{escape(CAPTION[0].upper() + CAPTION[1:])}.</p>'
    )


def _image(figure: Figure, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * _DPI, metadata={"Software": None})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    width, height = (round(_DPI * side) for side in figure.get_size_inches())
    return (
        f'<figure><img alt="{escape(text)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        "</figure>"
    )


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
    heading = f"{counted_examples(len(report.skipped))} skipped that could not be read"
    return f"<h2>{heading}</h2>\n<ul>{items}</ul>"
