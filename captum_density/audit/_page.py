"""An audit as a page: one file, pictures inside, for screens of any width, for print and for a screen reader."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from captum_density.audit._figures import FIGURES, columns
from captum_density.audit._figures.figure import Figure
from captum_density.audit._figures.words import beside_controls, cost_in_words, counted_examples
from captum_density.audit._findings import KINDS, verdict
from captum_density.audit._images import Image, Images, draw_images
from captum_density.audit._pictures import CAPTION
from captum_density.audit._questions import answers, unanswered
from captum_density.audit._recommendation import recommend
from captum_density.audit._results import Finding, Measured, Results, by_method, has_controls, number

__all__ = ["fragment", "page"]

_FAILED = '<span class="failed">failed</span>'

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
.captum-density .kind {font-weight: 600}
.captum-density .advice {display: block; color: #333}
.captum-density code {font-size: .9em; color: inherit; background: #f2f2f2}
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
  .captum-density th, .captum-density td {padding: .15rem .2rem; white-space: normal}
  .captum-density td small {min-width: 0}
  .captum-density th[scope=row] {min-width: 5rem; overflow-wrap: anywhere}
  .captum-density .scroll {overflow: visible}
  .captum-density .scroll img {max-width: 100%; max-height: 4.2in; width: auto}
  .captum-density tr, .captum-density li {break-inside: avoid}
  .captum-density h2, .captum-density h3, .captum-density dt {break-after: avoid}
}
"""


def page(results: Results, images: Images | None = None) -> str:
    """The whole page, with pictures that are drawn already, if so; its policy forbids a browser to load anything."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'\">\n<title>Audit of {escape(str(results.settings['model']))}</title>\n<style>body "
        f"{{margin: 0; background: #fff}}{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{_body(results, images or draw_images(results))}\n</main>\n</body>\n</html>\n"
    )


def fragment(results: Results) -> str:
    """The same for a notebook."""
    return f"<style>{_STYLE}</style>\n{_body(results, draw_images(results))}"


def _body(results: Results, images: Images) -> str:
    parts = [
        '<div class="captum-density">',
        "<h1>Can I trust this model's gradients?</h1>",
        f'<p class="verdict">{escape(verdict(results))}</p>',
        _recommendation(results),
        f'<p class="about">{escape(_about(results))}</p>',
        "<h2>What the figures say, and what to do next</h2>",
        _findings(results),
        _model(results),
        _methods(results),
        _controls(results),
        _panels(images),
        _maps(images),
        _meanings(results),
        _unanswered(results),
        _skipped(results),
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def _about(results: Results) -> str:
    settings = results.settings
    shape = " x ".join(map(str, settings["shape"]))
    return (
        f"{settings['model']}: {settings['classes']} outputs, {settings['examples']} examples of shape {shape}, seed "
        f"{settings['seed']}, on {settings['device']}, PyTorch {settings['torch']}."
        f"{' ' + cost_in_words(results) if results.cost else ''}"
    )


def _recommendation(results: Results) -> str:
    if not results.methods:
        return ""
    choice = recommend(results)
    reasons = _with_code(" ".join(choice.reasons))
    return f'<p class="recommendation"><span class="kind">{escape(choice.answer)}</span> {reasons}</p>'


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _findings(results: Results) -> str:
    parts = []
    for question, told, measured in answers(results):
        items = "\n".join(map(_item, told)) or f'<li class="note">{escape(measured[0].upper() + measured[1:])}.</li>'
        parts.append(f'<h3>{escape(question)}</h3>\n<ul class="findings">\n{items}\n</ul>')
    return "\n".join(parts)


def _item(finding: Finding) -> str:
    code = _with_code(finding.advice)
    advice = f' <span class="advice">{code}</span>' if code else ""
    kind = f'<span class="kind">{KINDS[finding.kind]}:</span>'
    return f'<li class="{finding.kind}">{kind} {escape(finding.text)}{advice}</li>'


def _unanswered(results: Results) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in unanswered(results))
    return f"<h2>What was not measured, and what no figure finds</h2>\n<ul>{items}</ul>" if items else ""


def _model(results: Results) -> str:
    if not results.model:
        return ""
    rows = [_model_row(FIGURES[name], measured) for name, measured in results.model.items()]
    heads = '<th scope="col">figure</th><th scope="col">found</th>' + "".join(
        f'<th scope="col" class="words">{head}</th>' for head in ("better", "meaning")
    )
    return f"<h2>The model</h2>\n{_table(heads, rows)}"


def _model_row(figure: Figure[Any], measured: Measured) -> str:
    return (
        f'<tr><th scope="row">{escape(figure.title)}</th>{_cell(measured, "found", with_note=True)}'
        f'<td class="words" data-label="better">{escape(figure.better)}</td>'
        f'<td class="words" data-label="meaning">{escape(figure.meaning)}</td></tr>'
    )


def _methods(results: Results) -> str:
    figures = columns(results)
    if not figures:
        return ""
    rows = [line for name, row in results.methods.items() for line in _method_rows(name, row, figures)]
    heads = '<th scope="col">method</th>' + "".join(
        f'<th scope="col">{escape(figure.title)}<br><small>{escape(figure.better)}</small></th>' for figure in figures
    )
    lines = ["Means over the examples, ± standard deviation over them, or [95% interval of the mean]."]
    for figure in figures:
        measured = [row[figure.name] for row in results.methods.values()]
        notes = dict.fromkeys(each.note for each in measured if each.value is None and each.note and not each.failed)
        lines += [f"No {figure.title}, '-': {note}." for note in notes]
    small = "\n".join(f'<p class="small">{escape(line)}</p>' for line in lines)
    return f"<h2>The attribution methods</h2>\n{_table(heads, rows)}\n{small}"


def _controls(results: Results) -> str:
    """Each figure that stands beside controls, with all of them."""
    return "\n".join(
        _beside_controls(figure, by_method(results, figure.name))
        for figure in columns(results)
        if has_controls(results, figure.name)
    )


def _beside_controls(figure: Figure[Any], methods: Mapping[str, Measured]) -> str:
    names = list(dict.fromkeys(control.name for measured in methods.values() for control in measured.controls))
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ("method", "the method", *names))
    rows = []
    for method, measured in methods.items():
        values = {control.name: number(control.value) for control in measured.controls}
        cells = "".join(
            f'<td data-label="{escape(label)}"><span>{escape(text)}</span></td>'
            for label, text in {
                "the method": number(measured.value),
                **{name: values.get(name, "-") for name in names},
            }.items()
        )
        words = f'<td class="words" data-label="in words">{escape(beside_controls(measured, len(methods)))}</td>'
        rows.append(f'<tr><th scope="row">{escape(method)}</th>{cells}{words}</tr>')
    title = f"{figure.title[0].upper()}{figure.title[1:]}, beside maps that know nothing of the model"
    notes = "".join(
        f'\n<p class="small">{escape(f"{method}: {measured.note}.")}</p>'
        for method, measured in methods.items()
        if measured.note
    )
    heads += '<th scope="col" class="words">in words</th>'
    return f"<h2>{escape(title)}</h2>\n{_table(heads, rows)}{notes}"


def _method_rows(name: str, row: Mapping[str, Measured], figures: Sequence[Figure[Any]]) -> Iterator[str]:
    """A method's row; each error once, in place of the figures or, where there are some, in a row below."""
    head = f'<th scope="row">{escape(name)}</th>'
    titles_of: dict[str, list[str]] = {}  # by the error
    for figure in figures:
        if row[figure.name].failed:
            titles_of.setdefault(row[figure.name].note, []).append(figure.title)
    for error, titles in titles_of.items():
        if len(titles) == len(figures):
            yield f'<tr>{head}<td class="words" colspan="{len(figures)}">{_FAILED}: {escape(error)}</td></tr>'
            return
    cells = "".join(
        _cell(row[figure.name], figure.title, with_note=figure.shows_note and row[figure.name].value is not None)
        for figure in figures
    )
    row_tag = '<tr class="partly">' if titles_of else "<tr>"
    yield f"{row_tag}{head}{cells}</tr>"
    if titles_of:
        errors = "".join(
            f"<div>{_FAILED} at {escape(', '.join(titles))}: {escape(error)}</div>"
            for error, titles in titles_of.items()
        )
        yield f'<tr><td class="words" colspan="{1 + len(figures)}">{errors}</td></tr>'


def _table(heads: str, rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(measured: Measured, label: str, with_note: bool = False) -> str:
    text = _FAILED if measured.failed else f"<span>{escape(measured.text())}</span>"
    note = f"<small>{escape(measured.note)}</small>" if with_note and measured.note else ""
    return f'<td data-label="{escape(label)}">{text}{note}</td>'


def _panels(images: Images) -> str:
    if not images.panels:
        return ""
    panels = "\n".join(map(_image, images.panels))
    return f'<h2>The methods compared</h2>\n<div class="panels">\n{panels}\n</div>'


def _maps(images: Images) -> str:
    if not images.maps:
        return ""
    maps = "\n".join(f'<div class="scroll">{_image(image)}</div>' for image in images.maps)
    return f'<h2>What the methods show</h2>\n{maps}\n<p class="small">{escape(CAPTION[0].upper() + CAPTION[1:])}.</p>'


def _image(image: Image) -> str:
    data = base64.b64encode(image.png()).decode("ascii")
    width, height = image.size
    return (
        f'<figure><img alt="{escape(image.text)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        "</figure>"
    )


def _meanings(results: Results) -> str:
    items = "\n".join(
        f"<dt>{escape(figure.title)} ({escape(figure.better)})</dt><dd>{escape(figure.meaning)}</dd>"
        for figure in columns(results)
    )
    return f"<h2>What the methods' figures mean</h2>\n<dl>\n{items}\n</dl>" if items else ""


def _skipped(results: Results) -> str:
    if not results.skipped:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in results.skipped)
    heading = f"{counted_examples(len(results.skipped))} skipped that could not be read"
    return f"<h2>{heading}</h2>\n<ul>{items}</ul>"
