"""An audit as a page: one file, pictures inside, for screens of any width, for print and for a screen reader.

The answer comes first, then a section for each question, with its figures and the controls beside them; then pictures,
and last what was not measured.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from captum_density.audit._figures import MODEL_FIGURES, titled
from captum_density.audit._figures.figure import Figure
from captum_density.audit._figures.words import beside_controls, cost_in_words, counted_examples, listed
from captum_density.audit._findings import KINDS, verdict
from captum_density.audit._images import Image, Images, draw_images
from captum_density.audit._questions import Answer, answers, unanswered
from captum_density.audit._recommendation import recommend
from captum_density.audit._results import Finding, Measured, Results, by_method, has_controls, number
from captum_density.audit._texts import TEXT_STYLE, texts

__all__ = ["fragment", "page"]

# Every rule begins with the fragment's class, so that a notebook around it stays as it is. Colours keep a contrast of
# at least 4.5 with their ground, and every colour comes with a word.
_STYLE = """
.captum-density {font: 1rem/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 78rem;
  margin: 0 auto; padding: .1rem 1rem 2rem; overflow-wrap: anywhere; color-scheme: light; text-align: left}
.captum-density h1 {font-size: 1.5rem; line-height: 1.25; margin: 1rem 0 .25rem; color: inherit}
.captum-density h2 {font-size: 1.15rem; margin: 2rem 0 .5rem; color: inherit}
.captum-density h3 {font-size: 1rem; margin: 1rem 0 .25rem; color: inherit}
.captum-density .verdict {font-size: 1.15rem; font-weight: 600; margin: .25rem 0}
.captum-density .recommendation {margin: .25rem 0 .75rem}
.captum-density .about, .captum-density .small {color: #4d4d4d; font-size: .9rem}
.captum-density ul.findings {list-style: none; padding: 0; margin: 0}
.captum-density ul.findings li {border-left: .3rem solid #767676; padding: .1rem 0 .1rem .75rem; margin: .6rem 0}
.captum-density ul.findings li.warning {border-color: #b34700}
.captum-density ul.findings li.good {border-color: #005a92}
.captum-density section {border-top: 1px solid #ccc; margin-top: 1.75rem}
.captum-density section > h2 {margin: .75rem 0 .25rem}
.captum-density .answer {font-size: 1.05rem; margin: .25rem 0 .5rem}
.captum-density .kind {font-weight: 600}
.captum-density .advice {display: block; color: #333}
.captum-density code {font-size: .9em; color: inherit; background: #f2f2f2}
.captum-density .scroll {overflow-x: auto}
.captum-density table {border-collapse: collapse; table-layout: auto; width: auto; font-size: .9rem; color: inherit;
  margin: .5rem 0}
.captum-density th, .captum-density td {text-align: right; padding: .3rem .4rem; border-bottom: 1px solid #ccc;
  vertical-align: top; white-space: nowrap; background: #fff; color: inherit; max-width: none; overflow-wrap: normal;
  line-height: 1.4}
.captum-density th, .captum-density .words, .captum-density td small {white-space: normal}
.captum-density th[scope=row], .captum-density th:first-child, .captum-density .words {text-align: left}
.captum-density th[scope=row] {min-width: 9rem; max-width: 18rem; overflow-wrap: break-word}
.captum-density tr.control th, .captum-density tr.control td {font-weight: 400; font-style: italic; background: #f2f2f2}
.captum-density .words {min-width: 7rem; overflow-wrap: break-word}
.captum-density td small {overflow-wrap: anywhere}
.captum-density td small, .captum-density th small {display: block; color: #4d4d4d; font-weight: 400}
.captum-density td small {min-width: 8rem}
.captum-density .failed {color: #9c2c00; font-weight: 600}
.captum-density .panels {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
  gap: 1rem}
.captum-density figure {margin: 0 0 1rem; break-inside: avoid}
.captum-density img {max-width: 100%; height: auto; background: #fff}
.captum-density .scroll img {max-width: none}
@media (max-width: 40rem) {
  .captum-density table, .captum-density tbody, .captum-density tr, .captum-density td,
  .captum-density th[scope=row] {display: block; text-align: left; max-width: none}
  .captum-density thead {position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden}
  .captum-density tr {border-bottom: 2px solid #999; padding: .5rem 0}
  .captum-density td.empty {display: none}
  .captum-density td, .captum-density th[scope=row] {border: 0; padding: .1rem 0; white-space: normal}
  .captum-density td[data-label]:not(.words) {display: flex; flex-wrap: wrap; justify-content: space-between;
    gap: 0 1rem}
  .captum-density td[data-label]::before {content: attr(data-label) ": "; color: #4d4d4d}
}
@media print {
  .captum-density {font-size: 10pt; max-width: none; padding: 0}
  .captum-density .about, .captum-density .small {font-size: 9pt}
  .captum-density table {font-size: 8pt}
  .captum-density th, .captum-density td {padding: .15rem .2rem; white-space: normal}
  .captum-density td small {min-width: 0}
  .captum-density .words {min-width: 6rem}
  .captum-density td > span {white-space: nowrap}
  .captum-density th[scope=row] {min-width: 7rem; overflow-wrap: anywhere}
  .captum-density .scroll {overflow: visible}
  .captum-density .scroll img {max-width: 100%; max-height: 4.2in; width: auto}
  .captum-density tr, .captum-density li {break-inside: avoid}
  .captum-density h2, .captum-density h3, .captum-density .answer, .captum-density h2 + .small {break-after: avoid}
}
"""


def page(results: Results, images: Images | None = None) -> str:
    """The whole page, with pictures that are drawn already, if so; its policy forbids a browser to load anything."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\">\n<title>Audit of {escape(str(results.settings['model']))}</title>\n<style>body "
        f"{{margin: 0; background: #fff}}{_STYLE}{TEXT_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{_body(results, images or draw_images(results, texts=False))}\n</main>\n</body>\n</html>\n"
    )


def fragment(results: Results) -> str:
    """The same for a notebook."""
    return f"<style>{_STYLE}{TEXT_STYLE}</style>\n{_body(results, draw_images(results, texts=False))}"


def _body(results: Results, images: Images) -> str:
    parts = [
        '<div class="captum-density">',
        "<h1>Can I trust this model's gradients?</h1>",
        f'<p class="verdict">{escape(verdict(results))}</p>',
        _recommendation(results),
        f'<p class="about">{escape(_about(results))}</p>',
        *(_section(results, answer) for answer in answers(results)),
        _maps(results, images),
        _panels(images),
        _unmeasured(results),
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def _about(results: Results) -> str:
    settings = results.settings
    shape = " x ".join(map(str, settings["shape"]))
    measured = results.model or results.methods
    lines = [
        f"{settings['model']}: {settings['classes']} outputs, {settings['examples']} examples of shape {shape}, seed "
        f"{settings['seed']}, on {settings['device']}, PyTorch {settings['torch']}.",
        cost_in_words(results) if results.cost else "",
        "Figures are means over the examples, ± their standard deviation, or with the 95% interval of the mean in "
        "brackets."
        if measured
        else "",
    ]
    return " ".join(filter(None, lines))


def _recommendation(results: Results) -> str:
    if not results.methods:
        return ""
    choice = recommend(results)
    reasons = _with_code(" ".join(choice.reasons))
    return f'<p class="recommendation"><span class="kind">{escape(choice.answer)}</span> {reasons}</p>'


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _section(results: Results, answer: Answer) -> str:
    """A question: its answer, what follows from its figures, the figures, and what they mean."""
    items = "\n".join(map(_item, answer.findings))
    parts = [
        f"<section>\n<h2>{escape(answer.question)}</h2>",
        _answer(answer.text),
        f'<ul class="findings">\n{items}\n</ul>' if items else "",
        _of_the_model(results, answer.figures),
        *_of_the_methods(results, answer.figures),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _answer(text: str) -> str:
    """With a stress on what comes before its figures."""
    first, colon, rest = text.partition(": ")
    return (
        f'<p class="answer"><span class="kind">{escape(first + colon.strip())}</span> {escape(rest)}</p>'
        if text
        else ""
    )


def _item(finding: Finding) -> str:
    code = _with_code(finding.advice)
    advice = f' <span class="advice">{code}</span>' if code else ""
    kind = f'<span class="kind">{KINDS[finding.kind]}:</span>'
    return f'<li class="{finding.kind}">{kind} {escape(finding.text)}{advice}</li>'


def _is_shown(measured: Measured) -> bool:
    return measured.value is not None or measured.failed


def _of_the_model(results: Results, names: Sequence[str]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(figure.title)}<small>{escape(figure.better)}</small></th>'
        f"{_cell(results.model[figure.name], 'found', with_note=True)}{_words('against the model', figure.against)}"
        f"{_words('meaning', figure.meaning)}</tr>"
        for figure in MODEL_FIGURES
        if figure.name in names and figure.name in results.model and _is_shown(results.model[figure.name])
    ]
    if not rows:
        return ""
    heads = [*map(_head, ("of the model", "found")), _head("against the model", "words"), _head("meaning", "words")]
    return _table(heads, rows)


def _of_the_methods(results: Results, names: Sequence[str]) -> list[str]:
    """A table for each figure that stands beside controls, and one for the others; below each, what figures mean."""
    figures = [titled(name, results) for name in names if any(map(_is_shown, _column(results, name).values()))]
    others = [figure for figure in figures if not has_controls(results, figure.name)]
    parts = [_beside_controls(results, figure) for figure in figures if figure not in others]
    return [*parts, _others(results, others)] if others else parts


def _column(results: Results, name: str) -> dict[str, Measured]:
    return {method: row[name] for method, row in results.methods.items() if name in row}


def _others(results: Results, figures: Sequence[Figure[Any]]) -> str:
    """A row for each method that has one of the figures."""
    columns = {figure.name: _column(results, figure.name) for figure in figures}
    rows = []
    for method in results.methods:
        cells = {figure.name: columns[figure.name].get(method, Measured(None)) for figure in figures}
        if any(map(_is_shown, cells.values())):
            row = "".join(_method_cell(figure, cells[figure.name]) for figure in figures)
            rows.append(f'<tr><th scope="row">{escape(method)}</th>{row}</tr>')
    return _table(map(_head, ["method", *(figure.title for figure in figures)]), rows) + _meanings(figures)


def _method_cell(figure: Figure[Any], measured: Measured) -> str:
    if measured.reference is not None and figure.reference and measured.value is not None:
        return _cell(measured, figure.title, f"{figure.reference}: {number(measured.reference)}")
    return _cell(measured, figure.title, with_note=figure.shows_note)


def _beside_controls(results: Results, figure: Figure[Any]) -> str:
    """Methods and controls from the best to the worst; controls that differ by method in columns of their own."""
    column, measured = _column(results, figure.name), by_method(results, figure.name)
    values = {method: _controls(figure, each) for method, each in measured.items()}
    names = dict.fromkeys(name for row in values.values() for name in row)
    own = [name for name in names if len(measured) > 1 and not _is_common([row.get(name) for row in values.values()])]
    common = {name: value for row in values.values() for name, value in row.items() if name not in own}
    rows: list[tuple[float, str]] = []
    for method, each in column.items():
        if not _is_shown(each):
            continue
        row = values.get(method, {})
        cells = _cell(each, figure.title)
        cells += "".join(_plain(name, number(row[name]) if name in row else "") for name in own)
        words = _words("in words", beside_controls(each, len(measured)) if each.value is not None else "")
        rows.append((_rank(figure, each.value), f'<tr><th scope="row">{escape(method)}</th>{cells}{words}</tr>'))
    for name, value in common.items():
        cells = _plain(figure.title, number(value)) + "".join(_plain(other, "") for other in own)
        words = _words("in words", "a control")
        rows.append(
            (_rank(figure, value), f'<tr class="control"><th scope="row">{escape(name)}</th>{cells}{words}</tr>')
        )
    heads = [*map(_head, ["best first", figure.title, *own]), _head("in words", "words")]
    text = "Controls are maps that know nothing of the model's reasons, measured in the methods' place"
    text += ": in rows of their own, and those made of a method's own map in its row." if own and common else "."
    methods_of: dict[str, list[str]] = {}  # by the note
    for method, each in column.items():
        if each.note and not each.failed and each.value is not None:
            methods_of.setdefault(each.note, []).append(method)
    notes = [f"{listed(methods)}: {note}." for note, methods in methods_of.items()]
    small = "".join(f'\n<p class="small">{escape(line)}</p>' for line in (text, *notes))
    table = _table(heads, [row for _, row in sorted(rows, key=lambda row: row[0])])
    return table + small + _meanings([figure])


def _controls(figure: Figure[Any], measured: Measured) -> dict[str, float]:
    """The controls of a method, by name; a map of zeros, in whose unit a figure is drawn, is one as well."""
    controls = {control.name: control.value for control in measured.controls}
    if figure.panel.relative and measured.reference is not None:
        controls[figure.reference] = measured.reference
    return controls


def _is_common(values: Sequence[float | None]) -> bool:
    """Whether a control is the same for all methods that it stands beside, and beside more than one."""
    one, *others = [value for value in values if value is not None]
    return bool(others) and all(math.isclose(value, one, rel_tol=1e-9, abs_tol=1e-12) for value in others)


def _rank(figure: Figure[Any], value: float | None) -> float:
    """What is lower for better figures; what failed is last."""
    if value is None:
        return math.inf
    return value if figure.better.startswith("lower") else -value


def _meanings(figures: Iterable[Figure[Any]]) -> str:
    return "".join(
        f'\n<p class="small"><span class="kind">{escape(figure.title)}</span> ({escape(figure.better)}'
        f"{escape(f'; against a method {figure.against}') if figure.against else ''}): {escape(figure.meaning)}</p>"
        for figure in figures
    )


def _head(text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<th scope="col"{kind}>{escape(text)}</th>'


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    row, body = "".join(heads), "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{row}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(measured: Measured, label: str, note: str = "", with_note: bool = False) -> str:
    note = note or (measured.note if with_note and not measured.failed else "")  # errors are findings
    text = '<span class="failed">failed</span>' if measured.failed else f"<span>{escape(measured.text())}</span>"
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<td data-label="{escape(label)}">{text}{small}</td>'


def _plain(label: str, text: str) -> str:
    return f'<td data-label="{escape(label)}"><span>{escape(text)}</span></td>' if text else '<td class="empty"></td>'


def _words(label: str, text: str) -> str:
    return f'<td class="words" data-label="{label}">{escape(text)}</td>' if text else '<td class="words empty"></td>'


def _maps(results: Results, images: Images) -> str:
    shown = results.shown
    if shown is not None and shown.kind == "text" and shown.tokens and shown.maps:
        return f"<h2>What the methods show</h2>\n{texts(shown)}"
    if not images.maps:
        return ""
    maps = "\n".join(f'<div class="scroll">{_image(image)}</div>' for image in images.maps)
    caption = images.caption[:1].upper() + images.caption[1:]
    return f'<h2>What the methods show</h2>\n<p class="small">{escape(caption)}.</p>\n{maps}'


def _panels(images: Images) -> str:
    if not images.panels:
        return ""
    panels = "\n".join(map(_image, images.panels))
    caption = (
        "Dots are means over the examples; lines are one standard deviation over them, or the 95% interval of the mean."
    )
    return f'<h2>The methods compared</h2>\n<p class="small">{caption}</p>\n<div class="panels">\n{panels}\n</div>'


def _image(image: Image) -> str:
    data = base64.b64encode(image.png()).decode("ascii")
    width, height = image.size
    return (
        f'<figure><img alt="{escape(image.text)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        "</figure>"
    )


def _unmeasured(results: Results) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in unanswered(results))
    parts = [f"<section>\n<h2>What was not measured, and what no figure finds</h2>\n<ul>{items}</ul>"] if items else []
    if results.skipped:
        lines = "".join(f"<li>{escape(line)}</li>" for line in results.skipped)
        heading = f"{counted_examples(len(results.skipped))} skipped that could not be read"
        parts.append(f"{'' if items else '<section>'}<h3>{heading}</h3>\n<ul>{lines}</ul>")
    return "\n".join([*parts, "</section>"]) if parts else ""
