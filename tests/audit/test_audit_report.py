"""What is made of an audit's figures: texts, conclusions, JSON, pictures, the page's source."""

import dataclasses
import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from captum_density._model.errors import one_line
from captum_density.audit import AuditReport, Finding, Measured
from captum_density.audit._figures import FIGURES, METHOD_FIGURES, MODEL_FIGURES, selected
from captum_density.audit._figures.figure import of_examples
from captum_density.audit._maps import Maps, drawn_maps
from captum_density.audit._pictures import draw_figures, draw_maps, panel_text

SETTINGS = {
    "model": "Net",
    "examples": 64,
    "shape": [1, 6, 6],
    "classes": 10,
    "seed": 0,
    "device": "cpu",
    "noise_std": 0.123,
    "perturb_radius": 0.0456,
    "infidelity_samples": 100,
    "sensitivity_samples": 5,
    "torch": "2.0",
}
NAUGHTY = '<b>&"x"</b> $\\frac$ `y`'


def failed(note='RuntimeError: <i>no</i> & "none"'):
    return Measured(None, note=note, failed=True)


def row(value=0.5, **changes):
    """A method with every figure, none of which gives rise to a finding."""
    figures = {
        "completeness_gap": Measured(None, note="the method promises no sum"),
        "infidelity": Measured(0.5 * value, 0.1, reference=2.0),
        "sensitivity_max": Measured(0.2 * value, 0.01),
        "shift_sensitivity": Measured(0.005 * value, 0.001),
        "pixel_perturbation": Measured(value, 0.2, reference=0.3),
        "seconds": Measured(0.01 * value, 0.02),
    }
    return figures | changes


def report_of(methods=None, model=None, skipped=(), shown=None, settings=None):
    methods = {"Saliency": row()} if methods is None else methods
    return AuditReport(methods, {} if model is None else model, SETTINGS | (settings or {}), tuple(skipped), shown)


def pictures(names=("Saliency",), images=2):
    maps = {name: drawn_maps(torch.randn(images, 1, 6, 6)) for name in names}
    return Maps.of(torch.rand(images, 1, 6, 6), torch.arange(images), maps)


@pytest.fixture(scope="module")
def full():
    """Everything that a page can hold, with names that try to be markup."""
    methods = {
        "Saliency": row(),
        NAUGHTY: row(0.7, completeness_gap=Measured(0.01, 0.001)),
        "broken": {name: failed() for name in row()},
        "partly": row(sensitivity_max=failed("ValueError: <u>a tensor</u>"), seconds=failed("OSError: other")),
    }
    model = {
        "accuracy": Measured(0.9, 0.3, 0.8, 0.95),
        "density_ratio": Measured(None, note="<s>no</s> & none"),
        "hessian_trace": failed(),
    }
    return report_of(
        methods,
        model,
        ["cat/<1>.png (OSError: truncated)"],
        pictures(["Saliency", NAUGHTY, "partly"]),
        {"model": NAUGHTY},
    )


@pytest.fixture(scope="module")
def whole_page(full):
    return full.to_html()


# _results.py, _figures


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Measured(None), "-"),
        (Measured(None, failed=True), "failed"),
        (Measured(0.0), "0"),
        (Measured(-2.0, 0.345), "-2 ± 0.34"),
        (Measured(0.123456, 0.0), "0.12"),
        (Measured(0.5, 0.1, 0.4, 0.6), "0.5 [0.4, 0.6]"),
        (Measured(0.5, 0.1, low=0.4), "0.5 ± 0.1"),
        (Measured(5e-7), "<1e-6"),
        (Measured(-5e-7, 1e-6), "<1e-6"),
        (Measured(5e-7, low=-1e-6, high=1e-6), "5e-07 [-1e-06, 1e-06]"),
        (Measured(1e-6), "1e-06"),
        (Measured(99.6), "1e+02"),
        (Measured(123.4, 1000.0), "123 ± 1000"),
        (Measured(-123456.7), "-1.2e+05"),
    ],
)
def test_text_of_a_figure(figure, text):
    assert figure.text() == text


def test_of_examples_is_mean_and_sample_deviation():
    x = torch.tensor([1.0, 2.0, 4.0, 9.0], requires_grad=True)
    found = of_examples(x, reference=3.0)
    assert (found.value, found.reference, found.low, found.high) == (4.0, 3.0, None, None)
    assert found.spread == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3), rel=1e-15)
    assert of_examples(torch.tensor([3.0]), seed=1) == Measured(3.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            of_examples(torch.tensor([1.0, bad]))


def test_the_interval_is_that_of_the_mean():
    # Of a normal sample, the bootstrap's interval tends to mean +- 1.96 standard deviations / sqrt(n).
    n = 400
    x = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    found = of_examples(x, seed=3)
    half = 1.959964 * x.std(correction=0).item() / math.sqrt(n)
    # An end is a quantile of 2000 means, whose standard error is sqrt(.025 * .975 / 2000) / density = 0.06 sd.
    tolerance = 4 * 0.06 * half / 1.96
    assert found.low == pytest.approx(found.value - half, abs=tolerance)
    assert found.high == pytest.approx(found.value + half, abs=tolerance)
    assert of_examples(x, seed=3) == found
    assert of_examples(x, seed=4).low != found.low


def test_the_interval_covers_the_mean_as_often_as_theory_says():
    # The percentile interval of n = 40 normal values covers as often as Student's t with 39 degrees of freedom lies
    # within 1.96 * sqrt(39 / 40): 0.9396. Of 600, the share found has a standard deviation of 0.0097.
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(600, 40, generator=generator, dtype=torch.float64)
    covers = [found.low <= 0 <= found.high for found in (of_examples(x, seed=i) for i, x in enumerate(samples))]
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


def test_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "ValueError: a b c"
    assert one_line(ValueError("y" * 300)) == "ValueError: " + "y" * 300
    assert one_line(ValueError("y" * 301)) == "ValueError: " + "y" * 297 + "..."


def test_every_figure_says_what_it_is():
    assert list(FIGURES) == [measure.name for measure in (*METHOD_FIGURES, *MODEL_FIGURES)]
    for measure in FIGURES.values():
        assert measure.meaning.endswith(".") and "  " not in measure.meaning, measure.name
        assert re.fullmatch(r"(higher|lower) is (better|smoother)|below 0 is right", measure.better), measure.name


# _figures, _findings.py: each rule on figures at both sides of its threshold.


def said(methods=None, model=None, **settings):
    return report_of({} if methods is None else methods, model, settings=settings).findings


def of(measure, *figures):
    return {name: {measure: figure} for name, figure in zip("ABCDE", figures, strict=False)}


def only(found, kind, *words):
    """The only finding, which is of this kind and says all these words."""
    (finding,) = found
    assert finding.kind == kind
    whole = f"{finding.text} {finding.advice}"
    assert all(word in whole for word in words), whole
    return whole


def test_no_figures_say_nothing():
    assert said() == ()
    missing = {name: Measured(None, note="none") for name in FIGURES if name != "completeness_gap"}
    only(said({"A": missing}, missing), "note", "There is no accuracy: none.")
    assert said({"A": missing}, {name: figure for name, figure in missing.items() if name != "accuracy"}) == ()


def test_unremarkable_figures_say_nothing_but_that_no_sum_is_promised():
    only(said({"A": row(), "B": row()}), "note", "None of the methods promises a sum.", "FullGrad(complete=True)")


def test_accuracy_against_chance():
    figure = Measured(0.1, 0.1, low=0.05, high=0.2)
    only(
        said(model={"accuracy": figure}), "warning", "no better than chance (accuracy 0.1 [0.05, 0.2])", "preprocessed"
    )
    figure = Measured(0.15, 0.1, low=0.1, high=0.2)
    only(said(model={"accuracy": figure}), "note", "Whether the model predicts", "(accuracy 0.15 [0.1, 0.2])")
    assert said(model={"accuracy": dataclasses.replace(figure, low=0.1001)}) == ()
    assert said(model={"accuracy": figure}, classes=11) == ()
    # One output is two classes.
    half = Measured(0.6, low=0.5, high=0.7)
    assert said(model={"accuracy": half}, classes=2) == said(model={"accuracy": half}, classes=1)[1:] != ()
    only(said(classes=1)[:1], "note", "one output, whose softmax is constant", "two classes")
    assert said(model={"accuracy": Measured(0.0)}) == said(model={"accuracy": failed()})[:-1] == ()


def test_density():
    trace = {"hessian_trace": Measured(3.0, low=2.0, high=4.0)}
    above = {"density_ratio": Measured(0.5, low=0.1, high=0.9)}
    below = {"density_ratio": Measured(-0.5, low=-0.9, high=-0.1)}
    only(said(model=above), "warning", "(log density ratio 0.5 [0.1, 0.9])", "noise for likelier", "ScoreMatchingLoss")
    only(said(model=above | trace), "warning", "(log density ratio 0.5 [0.1, 0.9], Hessian trace 3 [2, 4])")
    text = only(said(model=below | trace), "good", "(log density ratio -0.5 [-0.9, -0.1], Hessian trace 3 [2, 4])")
    assert "Train" not in text
    for low, high in ((-0.1, 0.9), (0.0, 0.9), (-0.9, 0.0), (None, None)):
        only(said(model={"density_ratio": Measured(0.1, low=low, high=high)}), "note", "cannot be told")
    assert said(model=trace) == ()


def test_samples():
    def gan(low, high):
        return {"gan_test": Measured(0.5, low=low, high=high, reference=0.8)}

    only(said(model=gan(0.1, 0.39)), "warning", "hardly recognises", "(GAN-test 0.5 [0.1, 0.39]; on data 0.8)", "Train")
    assert "Train" not in only(said(model=gan(0.41, 0.9)), "good", "Another classifier recognises", "on data 0.8")
    for low, high in ((0.1, 0.4), (0.4, 0.9), (0.3, 0.5)):
        only(said(model=gan(low, high)), "note", "cannot be told")
    assert said(model={"gan_test": Measured(0.0, low=0.0, high=0.1)}) == ()


def test_shift():
    moved, little, still = Measured(0.011), Measured(0.01), Measured(9e-7)
    only(
        said(of("shift_sensitivity", moved, little, still)),
        "warning",
        "moves the maps of A (1 - cosine 0.011): of these",
        "`captum_density.softmax_shift.CenteredLogits(model)` in place of the model.",
    )
    assert said(of("shift_sensitivity", little, Measured(1e-6))) == ()
    only(said(of("shift_sensitivity", still, little)), "good", "does not move A.")
    only(said(of("shift_sensitivity", still, still, still)), "good", "does not move A, B and C.")
    cured = {"IG": moved, "Saliency": Measured(0.3), "IG, centered": still, "Saliency, centered": little}
    only(
        said({name: {"shift_sensitivity": figure} for name, figure in cured.items()}),
        "warning",
        "moves the maps of IG and Saliency (1 - cosine 0.011 to 0.3)",
        "('IG, centered': no change here).",
    )


def test_pixels():
    def at(low, high, value=0.2):
        return Measured(value, low=low, high=high)

    better, level, worse = at(0.1, 0.3), at(-0.1, 0.3), at(-0.3, -0.1)
    only(said(of("pixel_perturbation", better)), "good", "A ranks pixels better than chance (0.2 [0.1, 0.3]).")
    only(
        said(of("pixel_perturbation", better, at(0.3, 0.5, 0.4))),
        "good",
        "A and B rank pixels better than chance (best: B, 0.4 [0.3, 0.5]).",
    )
    assert said(of("pixel_perturbation", better, level, worse), examples=9)[:-1] == ()  # too few for a word
    for figure in (level, at(0.0, 0.3), at(-0.3, 0.0), at(0.01, 0.3)):
        only(
            said(of("pixel_perturbation", figure)),
            "warning",
            "A ranks pixels hardly better than chance",
            "more examples",
        )
    only(said(of("pixel_perturbation", level, level)), "warning", "A and B rank pixels hardly better than chance")
    only(said(of("pixel_perturbation", worse)), "warning", "A ranks pixels worse than chance.", "Do not read")
    only(said(of("pixel_perturbation", worse, worse)), "warning", "A and B rank pixels worse than chance.")
    assert said(of("pixel_perturbation", Measured(0.5))) == ()
    assert [finding.kind for finding in said(of("pixel_perturbation", worse, level, better))] == [
        "good",
        "warning",
        "warning",
    ]


def test_retrained():
    high, low = Measured(0.2, low=0.1, high=0.3), Measured(-0.2, low=-0.3, high=-0.1)
    only(said(of("diff_roar", high)), "good", "predict better from what A ranks high than what low.")
    only(said(of("diff_roar", high, high)), "good", "predict better from what A and B rank high than what low.")
    only(said(of("diff_roar", low)), "warning", "predict worse from what A ranks high", "adversarial_fit")
    assert said(of("diff_roar", Measured(0.1, low=0.0, high=0.2), Measured(-0.1, low=-0.2, high=0.0))) == ()


def test_complete():
    missing, whole, none = Measured(0.051), Measured(0.05), Measured(None, note="the method promises no sum")
    only(
        said(of("completeness_gap", missing, none)), "warning", "A misses part of what", "(gap 0.051)", "complete=True"
    )
    only(said(of("completeness_gap", missing, Measured(0.2))), "warning", "A and B miss part", "(gap 0.051 to 0.2)")
    only(said(of("completeness_gap", whole, none)), "good", "A accounts for what is explained (gap 0.05).")
    only(said(of("completeness_gap", whole, Measured(0.0))), "good", "A and B account for", "(gap 0 to 0.05).")
    only(said(of("completeness_gap", none, none)), "note", "None of the methods promises a sum.")
    # Of what failed it is not known.
    only(said(of("completeness_gap", none, failed())), "note", "B failed: RuntimeError")


def test_unsteady():
    only(said(of("sensitivity_max", Measured(0.51), Measured(0.5))), "warning", "moves the maps of A by 0.51 of their")
    only(
        said(of("sensitivity_max", Measured(0.9), Measured(2.0))), "warning", "of A and B by 0.9 to 2 of", "NoiseTunnel"
    )
    assert said(of("sensitivity_max", Measured(0.5))) == ()


def test_unfaithful():
    bad, good = Measured(0.9, reference=1.0), Measured(0.89, reference=1.0)
    whole = only(said(of("infidelity", bad)), "warning", "A foretells what erasing", "than a map of zeros.")
    assert "does best" not in whole
    only(said(of("infidelity", bad, bad, good)), "warning", "A and B foretell what", "C does best here.")
    assert said(of("infidelity", good, Measured(5.0), Measured(0.0, reference=0.0))) == ()
    # What is explained can differ, and with it the scale.
    only(said(of("infidelity", bad, good, Measured(5.0, reference=10.0))), "warning", "C does best here.")


def test_failures_are_said_once_each():
    figures = row(infidelity=failed("E: a"), seconds=failed("E: a"), shift_sensitivity=failed("E: b"))
    texts = [finding.text for finding in said({"A": figures, "B": {name: failed("E: c") for name in row()}})]
    assert texts == ["A failed at infidelity, seconds: E: a", "A failed at shift sensitivity: E: b", "B failed: E: c"]
    only(said(model={"accuracy": Measured(None), "hessian_trace": failed("E")}), "note", "the model failed at Hessian")


def test_few_examples():
    only(said(examples=29), "note", "29 examples make rough figures.", "Audit 30 or more")
    only(said(examples=1), "note", "1 example makes rough figures.")
    assert said(examples=30) == ()


def test_findings_about_the_model_come_first_and_failures_last():
    model = {"accuracy": Measured(0.0, low=0.0, high=0.1), "density_ratio": Measured(-1.0, low=-2.0, high=-0.5)}
    figures = row(shift_sensitivity=Measured(0.5), sensitivity_max=failed("E"), completeness_gap=Measured(0.0))
    texts = [finding.text for finding in said({"A": figures}, model, examples=3)]
    starts = [
        "The model predicts",
        "The density",
        "A term added",
        "A accounts",
        "A failed at sensitivity",
        "3 examples",
    ]
    assert len(texts) == len(starts) and all(map(str.startswith, texts, starts))


def test_names_with_a_comma_are_quoted():
    figure = {"shift_sensitivity": Measured(0.5)}
    only(
        said({"FullGrad, complete": figure, "IG": figure}), "warning", "maps of 'FullGrad, complete' and IG (1 - cosine"
    )


GOOD = {"A": {"completeness_gap": Measured(0.0)}}
BETTER = GOOD | {"B": {"shift_sensitivity": Measured(0.0)}}
BEST = BETTER | {"C": {"pixel_perturbation": Measured(0.2, low=0.1, high=0.3)}}
BAD = {"D": {"sensitivity_max": Measured(0.9)}}
WORSE = BAD | {"E": {"infidelity": Measured(1.0, reference=1.0)}}


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ({}, "These figures do not tell."),
        ({"A": {"completeness_gap": Measured(None)}}, "These figures do not tell."),  # and a note
        (BETTER, "These figures do not tell: nothing speaks against it, but few checks could speak for it."),
        (BEST, "As far as these checks go, yes: none of them found anything against it."),
        (BAD, "Not without care: the one finding speaks against it."),
        (BETTER | BAD, "Not without care: 1 of 3 findings speaks against it."),
        (WORSE, "Not without care: 2 of 2 findings speak against it."),
    ],
)
def test_verdict(methods, text):
    assert report_of(methods).verdict == text
    also_failed = methods | {"F": {"seconds": failed()}}
    assert report_of(also_failed).verdict == f"{text} Some of it could not be measured."


def test_nothing_is_explained_at_chance():
    figure = Measured(0.1, low=0.05, high=0.2)
    assert report_of(GOOD, {"accuracy": figure}).verdict.startswith("No: it predicts these data no better than chance")
    unclear = dataclasses.replace(figure, value=0.15)
    assert report_of(GOOD, {"accuracy": unclear}).verdict.startswith("These figures")


def test_outputs_and_classes():
    only(said(outputs="probabilities"), "warning", "look like probabilities", "without its last softmax")
    only(said(explained_classes=1), "note", "explained as one class")
    assert said(explained_classes=2) == said(explained_classes=1, classes=1)[1:] == ()


# _report.py


def test_tables_are_aligned():
    methods = {"a": row(), "A|B with a long name": row(completeness_gap=Measured(0.123, 0.05)), "bad": {}}
    methods["bad"] = {name: failed() for name in row()}
    text = report_of(
        methods, {"accuracy": Measured(0.9, low=0.8, high=0.95), "gradient_norm": Measured(1234.5)}
    ).table()
    model, table, legend = text.split("\n\n")
    for part, lines in ((model, 4), (table, 5)):
        widths = {len(line) for line in part.splitlines()}
        assert len(widths) == 1 and len(part.splitlines()) == lines
    bars = [[i for i, sign in enumerate(line) if sign == "|" and line[i - 1] != "\\"] for line in table.splitlines()]
    assert all(each == bars[0] for each in bars) and len(bars[0]) == 8
    assert r"A\|B with a long name" in table
    assert [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]] == [
        "method",
        *(FIGURES[name].title for name in row()),
    ]
    assert [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]] == [
        "a",
        *(figure.text() for figure in row().values()),
    ]
    assert table.count("failed") == 6
    assert all(len(line) <= 118 for line in legend.splitlines())


def test_the_legend_explains_what_is_shown_and_nothing_else():
    methods = {"a": {"infidelity": Measured(0.5, reference=2.0)}, "b": {"infidelity": Measured(0.5, reference=3.0)}}
    model = {"gan_test": Measured(0.5, reference=0.75)}
    legend = " ".join(report_of(methods, model, settings={"examples": 17}).table().split("\n\n")[-1].split())
    assert legend.startswith("Means over 17 examples, ") and "noise 0.12, sensitivity radius 0.046," in legend
    shown = {name for name, measure in FIGURES.items() if f". {measure.title}, {measure.better}: " in f". {legend}"}
    assert shown == {"infidelity", "gan_test"}
    assert "For a map of zeros: 2 or 3, by what is explained." in legend
    assert "For the other classifier on the data: 0.75." in legend
    assert FIGURES["infidelity"].meaning in legend
    assert " For " not in report_of({"a": {"infidelity": Measured(0.5)}}).table()


def test_a_report_of_the_model_or_the_methods_alone():
    assert "method" not in report_of({}, {"accuracy": Measured(1.0)}).table().split("\n\n")[0]
    assert len(report_of({"a": row()}).table().split("\n\n")) == 2
    # Nothing to measure of methods that are there all the same.
    assert len(report_of({"a": {}}, {"accuracy": Measured(1.0)}).table().split("\n\n")) == 2


def test_summary(full):
    lines = full.summary().splitlines()
    assert " ".join(full.summary().split()).startswith(f"Can I trust this model's gradients? {full.verdict}")
    assert all(len(line) <= 118 for line in lines[1:])
    starts = [line.partition(":")[0] for line in lines[2:] if line[:2] != "  "]
    marks = {"good": "- in favour", "warning": "- against", "note": "- note"}
    assert lines[1] == "" and starts == [*(marks[finding.kind] for finding in full.findings), "- note"]
    joined = " ".join(full.summary().split())
    assert all(finding.text in joined and finding.advice in joined for finding in full.findings)
    assert "- note: 1 example skipped that could not be read: cat/<1>.png (OSError: truncated)" in joined
    assert str(full) == f"{full.table()}\n\n{full.summary()}"
    many = report_of(skipped=[f"file {i}" for i in range(5)]).summary()
    assert (
        "5 examples skipped that could not be read: file 0; file 1; file 2; and 2 more" in many and "file 3" not in many
    )


def test_json_and_back(full, whole_page):
    text = full.to_json()
    assert json.loads(text) == full.to_dict() == json.loads(json.dumps(full.to_dict()))
    again = AuditReport.from_json(text)
    assert again == full and again.to_json() == text and again.to_html() == whole_page
    assert again.methods["broken"]["infidelity"] == failed()
    assert again.methods["Saliency"]["infidelity"] == full.methods["Saliency"]["infidelity"]
    found = full.to_dict()
    assert found["verdict"] == full.verdict
    assert [Finding(**each) for each in found["findings"]] == list(full.findings)
    assert AuditReport.from_dict({**found, "time": "now", "verdict": "Yes."}) == full
    for change in ({"methods": {}}, {"model": {}}, {"skipped": ()}, {"shown": None}, {"settings": SETTINGS}):
        assert dataclasses.replace(full, **change) != full


def test_json_holds_neither_nan_nor_infinity():
    for value in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="JSON compliant"):
            report_of({"a": {"infidelity": Measured(value)}}).to_json()


@pytest.mark.parametrize("found", [{}, {"captum_density_audit": 2}, {"captum_density_audit": "1"}, [], None, "text"])
def test_something_else_is_no_audit(found):
    with pytest.raises(ValueError, match="this is no audit of version 1"):
        AuditReport.from_dict(found)
    with pytest.raises(ValueError, match="this is no audit of version 1"):
        AuditReport.from_json(json.dumps(found))


def test_no_json():
    with pytest.raises(ValueError, match="Expecting"):
        AuditReport.from_json("no JSON")


def test_save(tmp_path, full, whole_page):
    out = tmp_path / "made" / "for it"
    written = full.save(out)
    assert sorted(written) == sorted(path.name for path in out.iterdir())
    assert written == ["report.html", "report.json", "table.md", "figures.png", "saliency.png"]
    assert (out / "report.html").read_text(encoding="utf-8") == whole_page
    assert AuditReport.from_json((out / "report.json").read_text(encoding="utf-8")) == full
    assert (out / "table.md").read_text(encoding="utf-8") == f"{full}\n"
    for name in written[3:]:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    small = report_of({"a": {"seconds": Measured(1.0)}})
    assert small.save(str(out)) == written[:4]  # over what is there
    assert AuditReport.from_json((out / "report.json").read_text(encoding="utf-8")) == small
    assert report_of({}, {"accuracy": Measured(1.0)}).save(tmp_path / "bare") == written[:3]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        small.save(tmp_path / "file")


# _pictures.py


def dots(axes):
    """Of each method that is drawn: its place, the value, and the ends of its line."""
    lines = [line for line in axes.lines if line.get_linestyle() != "--"]
    found = {}
    for bar, dot in zip(lines[::2], lines[1::2], strict=True):
        assert dot.get_marker() == "o" and bar.get_ydata()[0] == bar.get_ydata()[1] == dot.get_ydata()[0]
        found[float(dot.get_ydata()[0])] = (float(dot.get_xdata()[0]), *map(float, bar.get_xdata()))
    return found


def drawn(methods, measure):
    """The same by the method's name."""
    (axes,) = draw_figures(methods, [measure]).axes
    labels = {
        float(place): label.get_text() for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    assert list(labels.values()) == list(methods) and list(labels) == sorted(labels)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # from top to bottom
    return axes, {labels[place]: ends for place, ends in dots(axes).items()}


def test_panels_draw_the_figures():
    spread, interval, none = Measured(0.5, 0.2), Measured(0.3, 0.9, low=0.1, high=0.6), Measured(None)
    methods = {"a": spread, "b": none, "c": interval, "d": failed(), "e": Measured(0.1, 0.4), "f": Measured(0.2)}
    want = {"a": (0.5, 0.3, 0.7), "c": (0.3, 0.1, 0.6), "e": (0.1, 0.0, 0.5), "f": (0.2, 0.2, 0.2)}
    for measure in ("sensitivity_max", "shift_sensitivity"):
        axes, found = drawn({name: {measure: figure} for name, figure in methods.items()}, measure)
        assert found == {name: pytest.approx(ends, rel=1e-12) for name, ends in want.items()}
        assert axes.get_title() == f"{FIGURES[measure].title}\n({FIGURES[measure].better})"
        assert axes.get_xscale() == "linear" and not axes.get_xlabel()
    # Below 0 is meant for what can be there.
    for measure, text in (("pixel_perturbation", "chance"), ("diff_roar", "no difference")):
        axes, found = drawn({name: {measure: figure} for name, figure in methods.items()}, measure)
        assert found["e"] == pytest.approx((0.1, -0.3, 0.5))
        (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert list(line.get_xdata()) == [0, 0] and axes.get_xlabel() == f"dashed: {text}"


def test_infidelity_is_drawn_in_units_of_a_map_of_zeros():
    methods = {"a": Measured(3.0, 1.0, reference=10.0), "b": Measured(3.0, 1.0, reference=5.0)}
    axes, found = drawn({name: {"infidelity": figure} for name, figure in methods.items()}, "infidelity")
    assert found == {"a": pytest.approx((0.3, 0.2, 0.4)), "b": pytest.approx((0.6, 0.4, 0.8))}
    assert axes.get_title().startswith("infidelity / that of a map of zeros\n")
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert list(line.get_xdata()) == [1, 1] and axes.get_xlabel() == "dashed: a map of zeros"
    assert to_hex(line.get_color()) != to_hex(axes.lines[0].get_color())


@pytest.mark.parametrize("measure", ["completeness_gap", "seconds"])
def test_orders_of_magnitude(measure):
    methods = {"a": Measured(0.01, 0.02), "b": Measured(2.0, 0.5), "c": Measured(0.0), "d": Measured(1e-12)}
    axes, found = drawn({name: {measure: figure} for name, figure in methods.items()}, measure)
    assert axes.get_xscale() == "log"
    assert found["a"] == pytest.approx((0.01, 1e-8, 0.03)) and found["b"] == pytest.approx((2.0, 1.5, 2.5))
    assert found["c"] == found["d"] == pytest.approx((1e-8, 1e-8, 1e-8))  # where rounding begins
    low, high = drawn({"a": {measure: Measured(0.02, 0.1)}}, measure)[0].get_xlim()
    assert 0.005 < low < 0.02 < 0.12 <= high < 1  # a standard deviation below 0 does not make the panel
    low, high = drawn({"a": {measure: Measured(0.02)}}, measure)[0].get_xlim()
    assert high / low >= 99  # so that there are ticks


def test_panels_are_those_that_hold_something():
    methods = {"a": row(), "b": row()}
    figure = draw_figures(methods, list(FIGURES))
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_visible()]
    assert titles == [
        "infidelity / that of a map of zeros",
        "sensitivity",
        "shift sensitivity",
        "pixels beyond chance",
        "seconds",
    ]
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in report_of(methods).figure(["seconds"]).axes] == ["seconds\n(lower is better)"]
    assert len(report_of(methods).figure().axes) == 6
    for nothing in ({}, {"a": {}}, {"a": {"seconds": failed()}}):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_figures(nothing, ["seconds"])
    with pytest.raises(ValueError, match="nothing to draw"):
        report_of(methods).figure(["completeness_gap"])


LONG = "IntegratedGradients, centered, of the block before the last with fifty steps and noise"


@pytest.mark.parametrize("names", [["a"], [LONG], [LONG * 3, *(f"method {i}" for i in range(19))], [NAUGHTY, "$x$"]])
@pytest.mark.parametrize("measures", [["seconds"], list(row())])
def test_labels_stay_inside_and_apart(names, measures):
    figure = draw_figures({name: row() for name in names}, measures)
    figure.draw_without_rendering()
    whole = figure.bbox
    for axes in (axes for axes in figure.axes if axes.get_visible()):
        low, high = axes.get_xlim()
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        seen = [label for place, label in ticks if low <= place <= high]
        assert seen
        texts = [axes.title, axes.xaxis.label, *axes.get_yticklabels(), *seen]
        boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
        if axes is figure.axes[0]:
            assert len([text for text in axes.get_yticklabels() if text.get_text()]) == len(names)
        for box in boxes:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 8 and box.y1 <= whole.y1 + 1
        rows = sorted(
            (text.get_window_extent() for text in axes.get_yticklabels() if text.get_text()), key=lambda b: b.y0
        )
        assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(rows))
        assert axes.bbox.width > 100 and axes.title.get_window_extent().y0 >= axes.bbox.y1


def test_names_are_no_formulas_and_keep_both_ends():
    figure = draw_figures({"a $\\frac$ b": row(), LONG * 2: row()}, ["seconds"])
    plain, long = (label.get_text() for label in figure.axes[0].get_yticklabels())
    assert plain == r"a \$\frac\$ b"  # matplotlib's way of writing a dollar
    assert long.replace("\n", " ").startswith(LONG[:40]) and long.replace("\n", " ").endswith(LONG[-40:])
    assert "…" in long and long.count("\n") < 5
    maps = draw_maps(pictures(["a $\\frac$ b"]))
    maps.draw_without_rendering()  # a formula with this would raise


def test_described_holds_the_figures():
    methods = {"a": row(), "b": row(0.25), "c": {"seconds": failed()}}
    for measure in ("sensitivity_max", "pixel_perturbation", "seconds"):
        shown = "; ".join(f"{name} {methods[name][measure].text()}" for name in "ab")
        assert panel_text(methods, measure) == f"{FIGURES[measure].title} by method, {FIGURES[measure].better}: {shown}"
    assert "a 0.25 ± 0.1 (a map of zeros 2)" in panel_text(methods, "infidelity")


def test_maps_are_drawn():
    figure = report_of(shown=pictures(["a", "b"], images=3)).maps()
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "a", "b"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["class 0", "class 1", "class 2"]
    assert "white to orange" in figure.get_supxlabel().replace("\n", " ")
    for nothing in (None, Maps(torch.zeros(0, 1, 1, 1)), Maps(torch.rand(1, 1, 4, 4), (0,))):
        with pytest.raises(ValueError, match="no maps to draw"):
            report_of(shown=nothing).maps()


# _maps.py


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 9))
def test_packed_and_unpacked(n, channels, side):
    values = torch.randn(n, channels, side, side + 1).half().float()
    found = json.loads(json.dumps(Maps.packed(values)))
    assert found["shape"] == [n, channels, side, side + 1]
    assert torch.equal(Maps.unpacked(found), values)


def test_shown_is_itself_again():
    shown = pictures(["a", NAUGHTY], 4)
    again = Maps.from_dict(json.loads(json.dumps(shown.to_dict())))
    assert again == shown and again.targets == (0, 1, 2, 3) and list(again.maps) == ["a", NAUGHTY]
    assert torch.equal(again.images, shown.images) and torch.equal(again.maps["a"], shown.maps["a"])
    other = dataclasses.replace(shown, maps={**shown.maps, "a": shown.maps["a"] / 2})
    assert shown != other and shown != dataclasses.replace(shown, targets=(1, 1, 1, 1)) and shown != "shown"


@pytest.mark.parametrize(("n", "rows"), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4]), (64, [0, 12, 25, 38, 51])])
def test_at_most_five_spread_over_the_examples(n, rows):
    x = torch.arange(n, dtype=torch.float64).div(64).reshape(n, 1, 1, 1).expand(n, 3, 2, 2)
    shown = Maps.of(x, torch.arange(n), {"a": drawn_maps(x + 1)})
    assert shown.targets == tuple(rows)
    assert torch.equal(shown.images, x[rows].float())
    assert shown.maps["a"].shape == (len(rows), 1, 2, 2)


@pytest.mark.parametrize(
    ("size", "small"), [((96, 96), (96, 96)), ((97, 20), (96, 20)), ((192, 384), (48, 96)), ((3000, 2), (96, 1))]
)
def test_at_most_96_pixels(size, small):
    x = torch.rand(2, 3, *size)
    shown = Maps.of(x, torch.zeros(2).long(), {"a": drawn_maps(x)})
    assert shown.images.shape == (2, 3, *small) and shown.maps["a"].shape == (2, 1, *small)
    assert shown.images.mean().item() == pytest.approx(x.mean().item(), abs=0.05)
    if size == (192, 384):
        assert torch.allclose(shown.images, torch.nn.functional.avg_pool2d(x, 4), atol=1e-3)


def test_images_are_stretched_only_out_of_their_range():
    x = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    targets = torch.zeros(2).long()
    assert torch.equal(Maps.of(x, targets, {}).images, x)
    edge = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    assert torch.equal(Maps.of(edge, targets, {}).images, edge)
    assert Maps.of(4 * x - 2, targets, {}).images.flatten(1)[:, 0].tolist() == [0, 1]  # from -1 and 1
    assert Maps.of(4 * x, targets, {}).images.flatten(1)[:, 0].tolist() == [0, 1]  # from 1 and 3, one scale for all


def test_maps_are_sums_over_channels_scaled_one_by_one():
    x = torch.zeros(3, 2, 1, 2)
    x[0] = torch.tensor([[[1.0, -3.0]], [[1.0, -1.0]]])
    x[1] = torch.tensor([[[0.5, 0.25]], [[0.0, 0.0]]])
    found = drawn_maps(x.requires_grad_())
    assert not found.requires_grad and found.dtype == torch.float32
    assert found.tolist() == [[[[0.5, -1.0]]], [[[1.0, 0.5]]], [[[0.0, 0.0]]]]


@pytest.mark.parametrize("shape", [(4, 7), (4, 2, 3, 3), (4, 4, 3, 3), (4, 1, 3), (4, 1, 3, 3, 3)])
def test_what_is_no_image_is_not_shown(shape):
    assert not Maps.can_show(torch.rand(shape))
    shown = Maps.of(torch.rand(shape), torch.zeros(4).long(), {"a": torch.rand(4, 1, 3, 3)})
    assert len(shown.images) == 0 and not shown.maps and not shown.targets
    assert Maps.from_dict(shown.to_dict()) == shown
    assert "What the methods show" not in report_of({}, shown=shown).to_html()


# _page.py

VOID = {"br", "img", "meta"}


class Tree(HTMLParser):
    """Reads a page, and raises where a tag is not closed or not opened in its place."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.found.append((tuple(self.open), data))

    @property
    def text(self):
        return " ".join("".join(data for path, data in self.found if "style" not in path).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_page_is_well_formed(full, whole_page):
    text = whole_page
    tree = Tree(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    names = [tag for tag, _ in tree.tags]
    for once in ("html", "head", "body", "main", "h1", "title", "style"):
        assert names.count(once) == 1
    assert {"charset": "utf-8"} in tree.all("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tree.all("meta")
    parts = "html head meta title style body main div h1 h2 p ul li span code figure img dl dt dd".split()
    assert set(names) <= {*parts, *"table thead tbody tr th td br small".split()}


def test_nothing_is_loaded_from_elsewhere(full, whole_page):
    text = whole_page
    (policy,) = (meta["content"] for meta in Tree(text).all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for part in (text, full._repr_html_()):
        for tag, attrs in Tree(part).tags:
            assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
            assert not {"href", "srcset", "action", "style", "data"} & set(attrs)
            assert not any(name.startswith("on") for name in attrs)
            assert attrs.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "url(" not in part and "@import" not in part and "http:" not in part and "https:" not in part


def test_everything_is_escaped(full, whole_page):
    for text in (whole_page, full._repr_html_()):
        tree = Tree(text)
        assert not {"b", "i", "u", "s"} & {tag for tag, _ in tree.tags}
        for part in (
            NAUGHTY,
            'RuntimeError: <i>no</i> & "none"',
            "ValueError: <u>a tensor</u>",
            "cat/<1>.png",
            "<s>no</s>",
        ):
            assert part in tree.text, part
        assert f"{NAUGHTY}: 10 outputs, 64 examples of shape 1 x 6 x 6" in tree.text
    # Advice can name a method.
    methods = {
        "bad": {"infidelity": Measured(1.0, reference=1.0)},
        NAUGHTY: {"infidelity": Measured(0.1, reference=1.0)},
    }
    advised = report_of(methods)
    assert any(NAUGHTY in finding.advice for finding in advised.findings)
    assert NAUGHTY.replace("`", "") in Tree(advised.to_html()).text.split("The attribution methods")[0]
    assert "<b>" not in advised.to_html()
    title = next(data for path, data in Tree(whole_page).found if path[-1:] == ("title",))
    assert title == f"Audit of {NAUGHTY}"


def test_pictures_have_words_that_hold_their_figures(full, whole_page):
    images = Tree(whole_page).all("img")
    alts = [image["alt"] for image in images]
    columns = list(row())
    assert alts[:-1] == [panel_text(full.methods, measure) for measure in columns]
    assert NAUGHTY in alts[0] and "0.01 ± 0.001" in alts[0]
    assert "2 of the audited images, of the explained classes 0, 1" in alts[-1]
    assert all(name in alts[-1] for name in ("Saliency", NAUGHTY, "partly"))
    assert all(int(image["width"]) > 100 and int(image["height"]) > 50 for image in images)


def test_many_maps_are_in_groups():
    names = [f"method {i}" for i in range(14)]
    alts = [image["alt"] for image in Tree(report_of({}, shown=pictures(names)).to_html()).all("img")][-3:]
    shown = [re.findall(r"method \d+", alt) for alt in alts]
    assert [len(part) for part in shown] == [5, 5, 4] and [name for part in shown for name in part] == names
    six = [image["alt"] for image in Tree(report_of({}, shown=pictures(names[:6])).to_html()).all("img")]
    assert all(name in six[-1] for name in names[:6])


def cells(text):
    """The tables' rows as texts, a cell being its tag and its text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, flags=re.S)
    return [re.findall(r"<(t[hd])([^>]*)>(.*?)</t[hd]>", each, flags=re.S) for each in rows]


def test_tables_have_scopes_and_labels(full, whole_page):
    rows = cells(whole_page)
    heads = [each for each in rows if 'scope="col"' in each[0][1]]
    assert len(heads) == 2
    for head in heads:
        assert all(tag == "th" and 'scope="col"' in attributes for tag, attributes, _ in head)
    assert len(rows) == 2 + len(full.model) + len(full.methods) + 1
    titles = [FIGURES[name].title for name in row()]
    for (tag, attributes, text), *rest in rows:
        if tag == "td":  # an error in a row of its own
            assert 'colspan="7"' in attributes and not rest
        elif 'scope="row"' in attributes and "broken" in text:
            assert len(rest) == 1 and 'colspan="6"' in rest[0][1]
        elif 'scope="row"' in attributes:
            labels = [re.search(r'data-label="([^"]*)"', part).group(1) for _, part, _ in rest]
            assert labels in (titles, ["found", "better", "meaning"])
    found = {re.sub("<.*?>", "", head[2]): [re.sub("<.*?>", "", cell[2]) for cell in rest] for head, *rest in rows}
    assert found["Saliency"] == [figure.text() for figure in full.methods["Saliency"].values()]
    assert found["accuracy"][:2] == ["0.9 [0.8, 0.95]", "higher is better"]


def test_an_error_is_said_once_in_the_table(full, whole_page):
    table = whole_page.split("<h2>The attribution methods</h2>")[1].split("<h2>")[0]
    text = Tree(table).text
    assert text.count("RuntimeError: <i>no</i>") == text.count("ValueError: <u>a tensor</u>") == 1
    assert "failed: RuntimeError" in text
    assert "failed at sensitivity: ValueError: <u>a tensor</u>" in text and "failed at seconds: OSError: other" in text
    assert "No completeness gap, '-': the method promises no sum." in text
    assert text.count("promises no sum") == 1
    other = report_of({"a": {"infidelity": failed("E: 1"), "seconds": failed("E: 2")}}).to_html()
    assert "failed at infidelity: E: 1" in Tree(other).text and "failed at seconds: E: 2" in Tree(other).text


def test_the_page_says_all_findings(full, whole_page):
    tree = Tree(whole_page)
    assert full.verdict in tree.text
    kinds = {"good": "in favour:", "warning": "against:", "note": "note:"}
    for finding in full.findings:
        assert f"{kinds[finding.kind]} {finding.text}" in tree.text
        assert finding.advice.replace("`", "") in tree.text.replace("`", "")
    assert [attrs["class"] for attrs in tree.all("li")[: len(full.findings)]] == [f.kind for f in full.findings]
    assert "1 example skipped that could not be read" in tree.text
    for name in row():
        assert FIGURES[name].meaning in tree.text
    code = report_of({"a": row(shift_sensitivity=Measured(0.5))}).to_html()
    assert "<code>captum_density.softmax_shift.CenteredLogits(model)</code>" in code


def test_a_bare_page():
    tree = Tree(report_of({}, {}).to_html())
    assert "These figures do not tell." in tree.text
    assert not tree.all("img") and not tree.all("table") and not tree.all("dl")
    assert "skipped" not in tree.text


def rules(style):
    """Selectors of all rules, those within @media as well."""
    flat = re.sub(r"@media[^{]*\{((?:[^{}]*\{[^{}]*\})*)\s*\}", r"\1", style)
    assert "@" not in flat
    return [selector.strip() for block in re.findall(r"([^{}]*)\{", flat) for selector in block.split(",")]


def test_the_fragment_keeps_to_itself(full, whole_page):
    text = full._repr_html_()
    tags = {tag for tag, _ in Tree(text).tags}
    assert not {"html", "head", "body", "main", "meta", "title"} & tags
    style = re.search(r"<style>(.*?)</style>", text, flags=re.S).group(1)
    assert style.count("{") == style.count("}")
    selectors = rules(style)
    assert len(selectors) > 30
    assert all(re.match(r"\.captum-density\b", selector) for selector in selectors), selectors
    body = text.split("</style>")[1].strip()
    assert body.startswith('<div class="captum-density">') and body.endswith("</div>")
    assert body in whole_page
    # Dark notebooks: it has a ground of its own, and so have its cells.
    assert "color: #1b1b1b; background: #fff" in style


def _luminance(color):
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_stand_out_from_their_ground(whole_page):
    # WCAG 2.1, success criterion 1.4.3: 4.5; the darkest ground is that of code.
    colors = re.findall(r"[ {;]color: (#\w+)", re.search(r"<style>(.*?)</style>", whole_page, flags=re.S).group(1))
    assert len(colors) >= 4
    ground = _luminance("#f2f2f2")
    for color in colors:
        assert (ground + 0.05) / (_luminance(color) + 0.05) >= 4.5, color
