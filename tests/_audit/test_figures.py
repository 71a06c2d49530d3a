"""Figures of an audit: mean, spread and interval; which of them a list of names selects; what each says it is.

Of private parts on purpose: an audit measures a model for every figure that it selects.
"""

import html
import math
import re

import pytest
import torch

from captum_density.audit import Measured
from captum_density.audit._figures import FIGURES, METHOD_FIGURES, MODEL_FIGURES, selected, titled
from captum_density.audit._figures.figure import of_examples
from tests.audit.reports import report_of, row


def test_of_examples_is_mean_and_sample_deviation():
    x = torch.tensor([1.0, 2.0, 4.0, 9.0], requires_grad=True)
    result = of_examples(x, reference=torch.full((4,), 3.0))
    assert (result.value, result.reference, result.low, result.high) == (4.0, 3.0, None, None)
    assert result.spread == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3), rel=1e-15)
    assert of_examples(torch.tensor([3.0]), seed=1) == Measured(3.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            of_examples(torch.tensor([1.0, bad]))


def test_the_interval_is_that_of_the_mean():
    # Of a normal sample, the bootstrap's interval tends to mean +- 1.96 standard deviations / sqrt(n).
    n = 400
    x = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    result = of_examples(x, seed=3)
    half = 1.959964 * x.std(correction=0).item() / math.sqrt(n)
    # An end is a quantile of 2000 means, whose standard error is sqrt(.025 * .975 / 2000) / density = 0.06 sd.
    tolerance = 4 * 0.06 * half / 1.96
    assert result.low == pytest.approx(result.value - half, abs=tolerance)
    assert result.high == pytest.approx(result.value + half, abs=tolerance)
    assert of_examples(x, seed=3) == result
    assert of_examples(x, seed=4).low != result.low


def test_the_interval_covers_the_mean_as_often_as_theory_says():
    # The percentile interval of n = 40 normal values covers as often as Student's t with 39 degrees of freedom lies
    # within 1.96 * sqrt(39 / 40): 0.9396. Of 600, the share found has a standard deviation of 0.0097.
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(600, 40, generator=generator, dtype=torch.float64)
    covers = [result.low <= 0 <= result.high for result in (of_examples(x, seed=i) for i, x in enumerate(samples))]
    assert sum(covers) / len(covers) == pytest.approx(0.9396, abs=3 * 0.0097)


def test_selected():
    everything = tuple(FIGURES)
    default = tuple(name for name in everything if name not in ("diff_roar", "gan_test"))
    assert selected(None) == selected(["default"]) == default
    assert selected(["all"]) == selected(["all", "seconds"]) == everything
    assert selected({"seconds": 1, "accuracy": 2, "infidelity": 3}) == ("infidelity", "seconds", "accuracy")
    assert set(selected(iter(["default", "gan_test"]))) == {*default, "gan_test"}
    assert selected("seconds") == ("seconds",)
    with pytest.raises(ValueError, match="there is no metric 'second'; there are default, all, completeness_gap, "):
        selected(["seconds", "second"])
    with pytest.raises(ValueError, match="metrics is empty"):
        selected([])


def test_every_figure_says_what_it_is():
    assert list(FIGURES) == [measure.name for measure in (*METHOD_FIGURES, *MODEL_FIGURES)]
    for measure in FIGURES.values():
        assert measure.meaning.endswith(".") and "  " not in measure.meaning, measure.name
        assert re.fullmatch(r"(higher|lower) is (better|smoother)|below 0 is right", measure.better), measure.name


def test_the_legend_explains_what_is_shown_and_nothing_else():
    methods = {"a": {"infidelity": Measured(0.5, reference=2.0)}, "b": {"infidelity": Measured(0.5, reference=3.0)}}
    model = {"gan_test": Measured(0.5, reference=0.75)}
    legend = " ".join(report_of(methods, model, settings={"examples": 17}).table().split("\n\n")[-1].split())
    assert legend.startswith("Means over 17 examples, ") and "noise 0.12, sensitivity radius 0.046," in legend
    in_legend = {
        name
        for name, measure in FIGURES.items()
        if f". {measure.title.format(elements='pixels')}, {measure.better}: " in f". {legend}"
    }
    assert in_legend == {"infidelity", "gan_test"}
    assert "For a map of zeros: 2 or 3, by what is explained." in legend
    assert "For the other classifier on the data: 0.75." in legend
    assert FIGURES["infidelity"].meaning in legend
    assert " For " not in report_of({"a": {"infidelity": Measured(0.5)}}).table()


def test_the_page_says_what_each_figure_means():
    report = report_of({"a": row(completeness_gap=Measured(0.5))})
    page = report.to_html()
    assert all(html.escape(titled(name, report).meaning) in page for name in row())
    assert html.escape(FIGURES["completeness_gap"].meaning) not in report_of().to_html()  # of no method measured
