"""What `audit` found: as text, as JSON and back, as a picture, as a page."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from captum_density._display.tables import markdown
from captum_density.audit._html import KINDS, fragment, page
from captum_density.audit._measures import MEASURES, METHOD_MEASURES, MODEL_MEASURES, Measured, counted_examples
from captum_density.audit._pictures import draw_figures, draw_maps
from captum_density.audit._shown import Shown
from captum_density.audit._summary import Finding, findings, verdict

__all__ = ["AuditReport"]

_VERSION = 1
_SKIPPED = 3


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found.

    Args:
        methods: Name of the method to name of the figure to what was measured.
        model: The same of the model itself.
        settings: What was audited, and how: model, examples, seed, noise.
        skipped: A line for each example that could not be read.
        shown: What is drawn of images and attributions.

    Example:
        >>> import torch
        >>> from captum_density.audit import audit
        >>> report = audit(torch.nn.Linear(3, 2), torch.rand(4, 3), "Saliency, centered", metrics="shift_sensitivity")
        >>> report.methods["Saliency, centered"]["shift_sensitivity"].text() in ("0", "<1e-6")
        True
        >>> AuditReport.from_json(report.to_json()) == report
        True
    """

    methods: Mapping[str, Mapping[str, Measured]]
    model: Mapping[str, Measured]
    settings: Mapping[str, Any]
    skipped: tuple[str, ...] = ()
    shown: Shown | None = field(default=None, repr=False)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What follows from the figures, and what to do about it."""
        told = self.settings
        return findings(
            self.methods,
            self.model,
            told["examples"],
            told["classes"],
            outputs=told.get("outputs", "logits"),
            explained=told.get("explained_classes"),
        )

    @property
    def verdict(self) -> str:
        """The answer to "can I trust this model's gradients?" in one sentence."""
        rows = (self.model, *self.methods.values())
        return verdict(self.findings, any(figure.failed for row in rows for figure in row.values()))

    def summary(self) -> str:
        """Return the verdict and the findings as text.

        Returns:
            Lines without a newline at the end: the verdict, and a list of findings in favour, against, and notes.
        """
        lines = [
            f"- {KINDS[found.kind]}: {' '.join(filter(None, (found.text, found.advice)))}" for found in self.findings
        ]
        if self.skipped:
            shown = "; ".join(self.skipped[:_SKIPPED])
            more = "" if len(self.skipped) <= _SKIPPED else f"; and {len(self.skipped) - _SKIPPED} more"
            counted = counted_examples(len(self.skipped))
            lines.append(f"- note: {counted} skipped that could not be read: {shown}{more}")
        told = [_filled(line) for line in lines]
        return "\n".join([f"Can I trust this model's gradients? {self.verdict}", "", *told])

    def table(self) -> str:
        """Return the figures as aligned Markdown tables, followed by what each means.

        Returns:
            Several lines of text, without a newline at the end.
        """
        parts = []
        if self.model:
            rows = [[MEASURES[each].title, figure.text(), MEASURES[each].better] for each, figure in self.model.items()]
            parts.append(markdown([["model", "", ""], *rows]))
        columns = self._columns()
        if columns:
            rows = [[name, *(figures[each].text() for each in columns)] for name, figures in self.methods.items()]
            parts.append(markdown([["method", *(MEASURES[each].title for each in columns)], *rows]))
        parts.append("\n".join(_filled(line) for line in self._legend()))
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as what `json` can write.

        Returns:
            A dict that `from_dict` turns into an equal report. Findings, and what the figures mean, are there to read
            and derived anew.
        """
        return {
            "captum_density_audit": _VERSION,
            "settings": dict(self.settings),
            "verdict": self.verdict,
            "findings": [asdict(found) for found in self.findings],
            "model": {each: asdict(figure) for each, figure in self.model.items()},
            "methods": {
                name: {each: asdict(figure) for each, figure in figures.items()}
                for name, figures in self.methods.items()
            },
            "figures": {
                each: {
                    "title": MEASURES[each].title,
                    "better": MEASURES[each].better,
                    "meaning": MEASURES[each].meaning,
                }
                for each in (*self.model, *self._columns())
            },
            "skipped": list(self.skipped),
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
            name: {each: Measured(**figure) for each, figure in figures.items()}
            for name, figures in found["methods"].items()
        }
        model = {each: Measured(**figure) for each, figure in found["model"].items()}
        shown = None if found["shown"] is None else Shown.from_dict(found["shown"])
        return cls(methods, model, dict(found["settings"]), tuple(found["skipped"]), shown)

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

    def figure(self, metrics: Iterable[str] | None = None) -> Figure:
        """Draw the methods' figures, one panel each: dots, with intervals or standard deviations.

        Args:
            metrics: Names of figures; None for all that were measured.

        Returns:
            A figure free of pyplot's state; save it with ``figure.savefig("figures.png")``.

        Raises:
            ValueError: None of them was measured.
        """
        return draw_figures(self.methods, self._columns() if metrics is None else list(metrics))

    def maps(self) -> Figure:
        """Draw some of the examples beside their attributions by each method, each map on a scale of its own.

        Returns:
            A figure free of pyplot's state.

        Raises:
            ValueError: The inputs are no images, or every method failed.
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
        """Write the report to a folder, made where it is missing.

        Args:
            folder: Where ``report.html``, ``report.json``, ``table.md`` and, where there is something to draw,
                ``figures.png`` and ``saliency.png`` go.

        Returns:
            The files' names.

        Raises:
            OSError: They cannot be written.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        texts = {"report.html": self.to_html(), "report.json": self.to_json() + "\n", "table.md": f"{self}\n"}
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
        written = list(texts)
        for name, draw in (("figures.png", self.figure), ("saliency.png", self.maps)):
            try:
                figure = draw()
            except ValueError:  # there is nothing to draw
                continue
            figure.savefig(out / name, dpi=150)
            written.append(name)
        return written

    def _repr_html_(self) -> str:
        return fragment(self)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.summary()}"

    def _columns(self) -> list[str]:
        measured = {each for figures in self.methods.values() for each in figures}
        return [measure.name for measure in METHOD_MEASURES if measure.name in measured]

    def _legend(self) -> list[str]:
        shown = {*self.model, *self._columns()}
        settings = self.settings
        lines = [
            f"Means over {settings['examples']} examples, ± standard deviation over them, or [95% interval] of the "
            f"mean; noise {settings['noise_std']:.2g}, sensitivity radius {settings['perturb_radius']:.2g}, in the "
            "inputs' unit."
        ]
        for measure in (*MODEL_MEASURES, *METHOD_MEASURES):
            if measure.name in shown:
                lines.append(f"{measure.title}, {measure.better}: {measure.meaning}{self._references(measure.name)}")
        return lines

    def _references(self, name: str) -> str:
        """What to compare a figure with: one value, or those of the views."""
        if name in self.model:
            values = [self.model[name].reference]
        else:
            values = [figures[name].reference for figures in self.methods.values() if name in figures]
        told = list(dict.fromkeys(f"{value:.2g}" for value in values if value is not None))
        by = ", by what is explained" if len(told) > 1 else ""
        return f" For {MEASURES[name].reference}: {' or '.join(told)}{by}." if told else ""


def _filled(line: str) -> str:
    return textwrap.fill(line, 118, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
