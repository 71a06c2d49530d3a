"""What `audit` found: as text, as JSON and back, as a picture, as a page."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture

from captum_density._display.tables import markdown
from captum_density.audit._figures import FIGURES, MODEL_FIGURES, columns
from captum_density.audit._figures.figure import Figure
from captum_density.audit._figures.words import cost_in_words, counted_examples
from captum_density.audit._files import write_figures, write_maps
from captum_density.audit._findings import KINDS, findings, verdict
from captum_density.audit._images import draw_images
from captum_density.audit._maps import Maps
from captum_density.audit._page import fragment, page
from captum_density.audit._pictures import draw_figures, draw_maps
from captum_density.audit._questions import answers
from captum_density.audit._recommendation import Recommendation, recommend
from captum_density.audit._results import Finding, Measured, Results, as_json, from_json, has_controls

__all__ = ["AuditReport"]

_VERSION = 1
_SKIPPED = 3
_PICTURES = ("figures.png", "saliency.png")
_ARRAYS = ("figures.csv", "maps.npz")


@dataclass(frozen=True)
class AuditReport(Results):
    """What `audit` found.

    Args:
        methods: Name of the method to name of the figure to what was measured.
        model: The same of the model itself.
        settings: What was audited, and how: model, examples, seed, noise.
        skipped: A line for each example that could not be read.
        shown: What is drawn of images and attributions.
        cost: How many examples the model was run on, copies included, in this run of the audit: "forward_examples" and
            "backward_examples", and ``different_`` before each, without what was run before on the same values, the
            least for these figures. Empty where it cannot be counted. Two reports with the same figures are equal
            whatever they cost.

    Example:
        >>> import torch
        >>> from captum_density.audit import audit
        >>> report = audit(torch.nn.Linear(3, 2), torch.rand(4, 3), "Saliency, centered", metrics="shift_sensitivity")
        >>> report.methods["Saliency, centered"]["shift_sensitivity"].text() in ("0", "<1e-6")
        True
        >>> AuditReport.from_json(report.to_json()) == report
        True
    """

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What follows from the figures, and what to do about it."""
        return findings(self)

    @property
    def verdict(self) -> str:
        """The answer to "can I trust this model's gradients?" in one sentence."""
        return verdict(self)

    def recommendation(self) -> Recommendation:
        """Which of the methods to use on this model and these data.

        It is the one that is best by pixel perturbation, among those that beat every control there: the interval of the
        difference in pairs lies above 0 for each control, at the level 1 - 0.05 / M, as the best of M methods is looked
        for (Bonferroni's correction; for several controls none is needed, see `Measured.beats_every_control`). Methods
        whose maps are much the same at random weights are left out.

        Returns:
            A `Recommendation`, which may be "none of these"; as text with ``str``.
        """
        return recommend(self)

    def summary(self) -> str:
        """Return the verdict, the recommendation, and an answer to each question with the findings about it.

        Returns:
            Lines without a newline at the end: the verdict, which method to use; and for each question, after an empty
            line, its answer and a list of findings in favour, against, and notes.
        """
        lines = [f"Can I trust this model's gradients? {self.verdict}"]
        if self.methods:
            lines.append(f"Which of these methods? {self.recommendation()}")
        for answer in answers(self):
            lines += ["", f"{answer.question} {answer.text}"]
            lines += [
                f"- {KINDS[finding.kind]}: {' '.join(filter(None, (finding.text, finding.advice)))}"
                for finding in answer.findings
            ]
        if self.skipped:
            first = "; ".join(self.skipped[:_SKIPPED])
            more = "" if len(self.skipped) <= _SKIPPED else f"; and {len(self.skipped) - _SKIPPED} more"
            lines += ["", f"{counted_examples(len(self.skipped))} skipped that could not be read: {first}{more}"]
        return "\n".join(map(_filled, lines))

    def table(self) -> str:
        """Return the figures as aligned Markdown tables, followed by what each means.

        Returns:
            Several lines of text, without a newline at the end.
        """
        parts = []
        if self.model:
            rows = [
                [FIGURES[name].title, measured.text(), FIGURES[name].better] for name, measured in self.model.items()
            ]
            parts.append(markdown([["model", "", ""], *rows]))
        figures = columns(self)
        if figures:
            heads = [head for figure in figures for head in self._heads(figure)]
            rows = [
                [name, *(cell for figure in figures for cell in self._cells(figure, row[figure.name]))]
                for name, row in self.methods.items()
            ]
            parts.append(markdown([["method", *heads], *rows]))
        parts.append("\n".join(map(_filled, self._legend())))
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as what `json` can write.

        Returns:
            A dict that `from_dict` turns into an equal report. Verdict, recommendation, findings, and what the
            figures mean, are there to read and derived anew.
        """
        recommendation = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.recommendation()).items()
        }
        return {
            "captum_density_audit": _VERSION,
            "settings": dict(self.settings),
            "verdict": self.verdict,
            "recommendation": recommendation,
            "findings": [asdict(finding) for finding in self.findings],
            "answers": [
                {"question": answer.question, "answer": answer.text, "figures": list(answer.figures)}
                for answer in answers(self)
            ],
            "model": {name: as_json(measured) for name, measured in self.model.items()},
            "methods": {
                method: {name: as_json(measured) for name, measured in row.items()}
                for method, row in self.methods.items()
            },
            "figures": {
                figure.name: {
                    "title": figure.title,
                    "better": figure.better,
                    "against": figure.against,
                    "meaning": figure.meaning,
                }
                for figure in (*(FIGURES[name] for name in self.model), *columns(self))
            },
            "skipped": list(self.skipped),
            "cost": dict(self.cost),
            "shown": None if self.shown is None else self.shown.to_dict(),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text.

        Returns:
            Several lines, without a newline at the end; no NaN or infinity.
        """
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> AuditReport:
        """Make a report of what `to_dict` returned; further keys are passed over.

        Args:
            found: What `to_dict` returned, or JSON gave back.

        Returns:
            An equal report.

        Raises:
            ValueError: It is no audit, or one of another version.
        """
        if not isinstance(found, Mapping) or found.get("captum_density_audit") != _VERSION:
            raise ValueError(f"this is no audit of version {_VERSION}, which AuditReport.to_json writes")
        methods = {
            method: {name: from_json(measured) for name, measured in row.items()}
            for method, row in found["methods"].items()
        }
        model = {name: from_json(measured) for name, measured in found["model"].items()}
        shown = None if found["shown"] is None else Maps.from_dict(found["shown"])
        cost = dict(found.get("cost", {}))
        return cls(methods, model, dict(found["settings"]), tuple(found["skipped"]), shown, cost)

    @classmethod
    def from_json(cls, text: str) -> AuditReport:
        """Make a report of what `to_json` returned.

        Args:
            text: The JSON.

        Returns:
            An equal report.

        Raises:
            ValueError: The text is no JSON, or no audit.
        """
        return cls.from_dict(json.loads(text))

    def figure(self, metrics: Iterable[str] | None = None) -> Picture:
        """Draw the methods' figures, one panel each: dots, with intervals or standard deviations.

        Args:
            metrics: Names of figures; None for all that were measured.

        Returns:
            A figure free of pyplot's state; save it with ``figure.savefig("figures.png")``.

        Raises:
            ValueError: None of them was measured.
        """
        names = [figure.name for figure in columns(self)] if metrics is None else list(metrics)
        return draw_figures(self.methods, names, elements=self.elements)

    def maps(self) -> Picture:
        """Draw some of the examples beside their attributions by each method, each map on a scale of its own.

        Returns:
            A figure free of pyplot's state.

        Raises:
            ValueError: The inputs are nothing that can be drawn, or every method failed.
        """
        return draw_maps(self.shown)

    def to_html(self) -> str:
        """Return the report as one page, pictures inside, that loads nothing from elsewhere.

        Returns:
            HTML 5; write it with ``Path("report.html").write_text(report.to_html(), encoding="utf-8")``.

        Raises:
            KeyError: A report that was put together by hand lacks a setting.
        """
        return page(self)

    def save(self, folder: str | Path) -> list[str]:
        """Write the report to a folder, made where it is missing, in place of another report that lies there.

        Args:
            folder: Where ``report.html``, ``report.json``, ``table.md``, ``figures.csv`` (a row for each method and
                figure) and, where there is something to draw, ``figures.png``, ``saliency.png`` and ``maps.npz`` (the
                maps of ``saliency.png`` as arrays: ``targets``, ``inputs``, ``maps/FullGrad``) go. Files of these names
                are removed first, so that what is stopped halfway leaves no picture beside the report of another audit.

        Returns:
            The files' names.

        Raises:
            OSError: They cannot be written.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        images = draw_images(self)
        texts = {"report.html": page(self, images), "report.json": self.to_json() + "\n", "table.md": f"{self}\n"}
        for name in (*texts, *_PICTURES, *_ARRAYS):
            (out / name).unlink(missing_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
        written = list(texts)
        files = ((images.panels, images.save_panels), (images.maps, images.save_maps))
        for name, (drawn, write) in zip(_PICTURES, files, strict=True):
            if drawn:
                write(out / name)
                written.append(name)
        write_figures(self, out / _ARRAYS[0])
        written.append(_ARRAYS[0])
        if self.shown is not None and images.maps:
            write_maps(self.shown, out / _ARRAYS[1])
            written.append(_ARRAYS[1])
        return written

    def _repr_html_(self) -> str:
        return fragment(self)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.summary()}"

    def _heads(self, figure: Figure[Any]) -> list[str]:
        return [figure.title, "strongest control"] if has_controls(self, figure.name) else [figure.title]

    def _cells(self, figure: Figure[Any], measured: Measured) -> list[str]:
        if not has_controls(self, figure.name):
            return [measured.text()]
        return [measured.text(), measured.controls[0].text() if measured.controls else "-"]

    def _legend(self) -> list[str]:
        settings = self.settings
        lines = [
            f"Means over {settings['examples']} examples, ± standard deviation over them, or [95% interval] of the "
            f"mean; noise {settings['noise_std']:.2g}, sensitivity radius {settings['perturb_radius']:.2g}, in the "
            "inputs' unit."
        ]
        lines += [cost_in_words(self)] if self.cost else []
        figures: list[Figure[Any]] = [figure for figure in MODEL_FIGURES if figure.name in self.model]
        for figure in [*figures, *columns(self)]:
            lines.append(f"{figure.title}, {figure.better}: {figure.meaning}{self._references(figure.name)}")
        return lines

    def _references(self, name: str) -> str:
        """What to compare a figure with: one value, or those of the views."""
        rows = [self.model] if name in self.model else self.methods.values()
        references = [row[name].reference for row in rows if name in row]
        texts = list(dict.fromkeys(f"{reference:.2g}" for reference in references if reference is not None))
        by = ", by what is explained" if len(texts) > 1 else ""
        return f" For {FIGURES[name].reference}: {' or '.join(texts)}{by}." if texts else ""


def _filled(line: str) -> str:
    return textwrap.fill(line, 118, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
