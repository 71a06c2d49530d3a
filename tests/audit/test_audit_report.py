"""What is made of an audit's figures: texts, conclusions, JSON, the page's source."""

import base64
import csv
import dataclasses
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from captum_density.audit import AuditReport, Control, Finding, Measured
from captum_density.audit._results import as_json, from_json
from tests.audit.reports import NAUGHTY, SETTINGS, beside, failed, pictures, report_of, row, texts

# Of the methods' figures in `row`, as tables and pictures name them, and the names of the figures that are not in it.
TITLES = ["completeness gap", "infidelity", "sensitivity", "shift sensitivity", "pixels beyond chance", "seconds"]
OTHERS = ["diff_roar", "accuracy", "density_ratio", "gradient_norm", "hessian_trace", "gan_test"]


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


# Figures as texts


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


# Findings: each rule on figures at both sides of its threshold.


def findings_of(methods=None, model=None, **settings):
    return report_of({} if methods is None else methods, model, settings=settings).findings


def of(measure, *figures):
    return {name: {measure: figure} for name, figure in zip("ABCDE", figures, strict=False)}


def only(findings, kind, *words):
    """The only finding, which is of this kind and says all these words."""
    (finding,) = findings
    assert finding.kind == kind
    whole = f"{finding.text} {finding.advice}"
    assert all(word in whole for word in words), whole
    return whole


def test_no_figures_say_nothing():
    assert findings_of() == ()
    missing = {name: Measured(None, note="none") for name in (*row(), *OTHERS) if name != "completeness_gap"}
    only(findings_of({"A": missing}, missing), "note", "There is no accuracy: none.")
    assert findings_of({"A": missing}, {name: figure for name, figure in missing.items() if name != "accuracy"}) == ()


def test_unremarkable_figures_say_nothing_but_that_no_sum_is_promised():
    only(
        findings_of({"A": row(), "B": row()}), "note", "None of the methods promises a sum.", "FullGrad(complete=True)"
    )


def test_accuracy_against_chance():
    figure = Measured(0.1, 0.1, low=0.05, high=0.2)
    only(
        findings_of(model={"accuracy": figure}),
        "warning",
        "no better than chance (accuracy 0.1 [0.05, 0.2])",
        "preprocessed",
    )
    figure = Measured(0.15, 0.1, low=0.1, high=0.2)
    only(findings_of(model={"accuracy": figure}), "note", "Whether the model predicts", "(accuracy 0.15 [0.1, 0.2])")
    assert findings_of(model={"accuracy": dataclasses.replace(figure, low=0.1001)}) == ()
    assert findings_of(model={"accuracy": figure}, classes=11) == ()
    # One output is two classes.
    half = Measured(0.6, low=0.5, high=0.7)
    assert (
        findings_of(model={"accuracy": half}, classes=2) == findings_of(model={"accuracy": half}, classes=1)[1:] != ()
    )
    only(findings_of(classes=1)[:1], "note", "one output", "two classes")
    assert findings_of(model={"accuracy": Measured(0.0)}) == findings_of(model={"accuracy": failed()})[:-1] == ()


def test_density():
    trace = {"hessian_trace": Measured(3.0, low=2.0, high=4.0)}
    above = {"density_ratio": Measured(0.5, low=0.1, high=0.9)}
    below = {"density_ratio": Measured(-0.5, low=-0.9, high=-0.1)}
    only(
        findings_of(model=above),
        "warning",
        "(log density ratio 0.5 [0.1, 0.9])",
        "are likelier than the data",
        "ScoreMatchingLoss",
    )
    only(findings_of(model=above | trace), "warning", "(log density ratio 0.5 [0.1, 0.9], Hessian trace 3 [2, 4])")
    text = only(
        findings_of(model=below | trace), "good", "(log density ratio -0.5 [-0.9, -0.1], Hessian trace 3 [2, 4])"
    )
    assert "Train" not in text
    for low, high in ((-0.1, 0.9), (0.0, 0.9), (-0.9, 0.0), (None, None)):
        only(findings_of(model={"density_ratio": Measured(0.1, low=low, high=high)}), "note", "cannot be told")
    assert findings_of(model=trace) == ()


def test_samples():
    def gan(low, high):
        return {"gan_test": Measured(0.5, low=low, high=high, reference=0.8)}

    only(
        findings_of(model=gan(0.1, 0.39)),
        "warning",
        "hardly recognises",
        "(GAN-test 0.5 [0.1, 0.39]; on data 0.8)",
        "Train",
    )
    assert "Train" not in only(
        findings_of(model=gan(0.41, 0.9)), "good", "Another classifier recognises", "on data 0.8"
    )
    for low, high in ((0.1, 0.4), (0.4, 0.9), (0.3, 0.5)):
        only(findings_of(model=gan(low, high)), "note", "cannot be told")
    assert findings_of(model={"gan_test": Measured(0.0, low=0.0, high=0.1)}) == ()


def test_shift():
    moved, little, still = Measured(0.011), Measured(0.01), Measured(9e-7)
    only(
        findings_of(of("shift_sensitivity", moved, little, still)),
        "note",
        "on any model",
        "moves the maps of A (1 - cosine 0.011), which",
        "`captum_density.softmax_shift.CenteredLogits(model)` in place of the model.",
    )
    assert findings_of(of("shift_sensitivity", little, Measured(1e-6))) == ()
    only(findings_of(of("shift_sensitivity", still, little)), "note", "does not move A.")
    only(findings_of(of("shift_sensitivity", still, still, still)), "note", "does not move A, B and C.")
    cured = {"IG": moved, "Saliency": Measured(0.3), "IG, centered": still, "Saliency, centered": little}
    only(
        findings_of({name: {"shift_sensitivity": figure} for name, figure in cured.items()}),
        "note",
        "moves the maps of IG and Saliency (1 - cosine 0.011 to 0.3)",
        "('IG, centered': no change here).",
    )


def test_pixels_beside_controls():
    better, level, worse = beside(0.1, 0.3), beside(-0.1, 0.3), beside(-0.3, -0.1)
    name = "pixel_perturbation"
    only(
        findings_of(of(name, better)), "good", "A finds the pixels that the model uses better than every control", "0.2"
    )
    only(findings_of(of(name, better), shape=[6]), "good", "A finds the features that the model uses")
    only(findings_of(of(name, better, beside(0.3, 0.5, 0.4))), "good", "A and B find the pixels", "best: B, 0.4")
    assert findings_of(of(name, better, level, worse), examples=9)[:-1] == ()  # too few for a word
    assert findings_of(of(name, Measured(0.5, low=0.4, high=0.6))) == ()  # of a report without controls
    for figure in (level, worse, beside(0.0, 0.3)):
        only(findings_of(of(name, figure)), "warning", "A is no better than a blob in the centre", "diff_roar")
    both = of(name, level, beside(-0.1, 0.3, control="the input itself"))
    only(findings_of(both), "warning", "A is no better than a blob in the centre; B is no better than the input itself")
    assert [finding.kind for finding in findings_of(of(name, worse, level, better))] == ["good", "warning"]


def test_the_best_of_many_has_to_be_better():
    # 0.2 - 0.16 / 1.96 * 2.81 = -0.03, where of ten methods the best is looked for: 2.81 is the normal quantile of
    # 1 - 0.025 / 10.
    figure = beside(0.04, 0.36)
    assert figure.beats_every_control() and not figure.beats_every_control(10)
    assert figure.controls[0].lower_end(10) == pytest.approx(0.2 - 0.16 * 2.80703 / 1.95996, abs=1e-5)
    only(findings_of(of("pixel_perturbation", figure)), "good")
    ten = {str(i): {"pixel_perturbation": figure} for i in range(10)}
    only(findings_of(ten), "warning", "no better than a blob")


def test_a_gain_of_next_to_nothing_does_not_count():
    figure = dataclasses.replace(beside(5e-5, 8e-5), least_gain=0.001)
    assert not figure.beats_every_control() and figure.strongest_control() == figure.controls[0]
    only(findings_of(of("pixel_perturbation", figure)), "warning", "no better than a blob")
    assert from_json(as_json(figure)) == figure


def test_every_control_has_to_be_beaten():
    strong, weak = (
        Control("the input itself", 0.1, 0.1, -0.01, 0.2),
        Control("a blob in the centre", 0.15, 0.05, 0.01, 0.1),
    )
    figure = Measured(0.2, controls=(weak, strong))
    assert not figure.beats_every_control() and figure.strongest_control() == strong
    beaten = dataclasses.replace(strong, low=0.001)
    figure = Measured(0.2, controls=(weak, beaten))
    assert figure.beats_every_control() and figure.strongest_control() == weak
    assert not Measured(0.2).beats_every_control()
    with pytest.raises(ValueError, match="pixel_perturbation and infidelity"):
        Measured(0.2).strongest_control()


def test_random_weights():
    alike, half = Measured(0.8, low=0.56, high=0.9), Measured(0.6, low=0.5, high=0.7)
    only(
        findings_of(of("randomisation", alike, half)), "warning", "A shows much the same when", "(rank correlation 0.8)"
    )
    only(findings_of(of("randomisation", alike, alike)), "warning", "A and B show much the same when")
    assert findings_of(of("randomisation", half, Measured(0.9))) == ()


def test_another_class():
    alike, other = Measured(0.95, low=0.91, high=0.99), Measured(0.92, low=0.9, high=0.95)
    only(
        findings_of(of("class_likeness", alike, other)), "note", "A shows nearly the same for the second class", "0.95"
    )
    assert findings_of(of("class_likeness", other)) == ()


def test_retrained():
    high, low = Measured(0.2, low=0.1, high=0.3), Measured(-0.2, low=-0.3, high=-0.1)
    only(findings_of(of("diff_roar", high)), "note", "predict better from what A ranks high than what low.")
    only(findings_of(of("diff_roar", high, high)), "note", "predict better from what A and B rank high than what low.")
    only(findings_of(of("diff_roar", low)), "warning", "predict worse from what A ranks high", "adversarial_fit")
    assert findings_of(of("diff_roar", Measured(0.1, low=0.0, high=0.2), Measured(-0.1, low=-0.2, high=0.0))) == ()


def test_complete():
    missing, whole, none = Measured(0.051), Measured(0.05), Measured(None, note="the method promises no sum")
    only(
        findings_of(of("completeness_gap", missing, none)),
        "warning",
        "A misses part of what",
        "(gap 0.051)",
        "complete=True",
    )
    only(
        findings_of(of("completeness_gap", missing, Measured(0.2))),
        "warning",
        "A and B miss part",
        "(gap 0.051 to 0.2)",
    )
    only(findings_of(of("completeness_gap", whole, none)), "note", "A accounts for what is explained (gap 0.05).")
    only(findings_of(of("completeness_gap", whole, Measured(0.0))), "note", "A and B account for", "(gap 0 to 0.05).")
    only(findings_of(of("completeness_gap", none, none)), "note", "None of the methods promises a sum.")
    # Of what failed it is not known.
    only(findings_of(of("completeness_gap", none, failed())), "note", "B failed: RuntimeError")


def test_unsteady():
    only(
        findings_of(of("sensitivity_max", Measured(0.51), Measured(0.5))),
        "warning",
        "moves the maps of A by 0.51 of their",
    )
    only(
        findings_of(of("sensitivity_max", Measured(0.9), Measured(2.0))),
        "warning",
        "of A and B by 0.9 to 2 of",
        "NoiseTunnel",
    )
    assert findings_of(of("sensitivity_max", Measured(0.5))) == ()


def test_unfaithful():
    bad, good = Measured(0.9, reference=1.0), Measured(0.89, reference=1.0)
    whole = only(findings_of(of("infidelity", bad)), "warning", "A foretells what erasing", "than a map of zeros.")
    assert "does best" not in whole
    only(findings_of(of("infidelity", bad, bad, good)), "warning", "A and B foretell what", "C does best here.")
    assert findings_of(of("infidelity", good, Measured(5.0), Measured(0.0, reference=0.0))) == ()
    # What is explained can differ, and with it the scale.
    only(findings_of(of("infidelity", bad, good, Measured(5.0, reference=10.0))), "warning", "C does best here.")


def test_infidelity_beside_controls():
    def figure(low, high, value=0.5):
        return dataclasses.replace(beside(low, high, value), low=None, high=None, reference=1.0)

    better, level = figure(0.1, 0.3), figure(-0.1, 0.3)
    only(findings_of(of("infidelity", better)), "good", "A foretells what erasing", "every control", "0.5 of that of")
    only(findings_of(of("infidelity", better, figure(0.1, 0.3, 0.2))), "good", "A and B foretell", "best: B", "0.2 of")
    only(findings_of(of("infidelity", level)), "warning", "A is no better than a blob in the centre, as far as")
    good, bad = findings_of(of("infidelity", level, better))
    assert (good.kind, bad.kind) == ("good", "warning") and "B does best here." in bad.advice
    # Hardly better than zeros is in favour of nothing, whatever the controls.
    only(findings_of(of("infidelity", figure(0.1, 0.3, 0.95))), "warning", "hardly better than a map of zeros")
    assert findings_of(of("infidelity", better, level), examples=9)[:-1] == ()


def test_failures_are_said_once_each():
    figures = row(infidelity=failed("E: a"), seconds=failed("E: a"), shift_sensitivity=failed("E: b"))
    texts = [finding.text for finding in findings_of({"A": figures, "B": {name: failed("E: c") for name in row()}})]
    assert texts == ["A failed at infidelity, seconds: E: a", "A failed at shift sensitivity: E: b", "B failed: E: c"]
    only(
        findings_of(model={"accuracy": Measured(None), "hessian_trace": failed("E")}),
        "note",
        "the model failed at Hessian",
    )


def test_few_examples():
    only(findings_of(examples=29), "note", "29 examples make rough figures.", "Audit 30 or more")
    only(findings_of(examples=1), "note", "1 example makes rough figures.")
    assert findings_of(examples=30) == ()


def test_findings_about_the_model_come_first_and_failures_last():
    model = {"accuracy": Measured(0.0, low=0.0, high=0.1), "density_ratio": Measured(-1.0, low=-2.0, high=-0.5)}
    figures = row(shift_sensitivity=Measured(0.5), sensitivity_max=failed("E"), completeness_gap=Measured(0.0))
    texts = [finding.text for finding in findings_of({"A": figures}, model, examples=3)]
    starts = [
        "The model predicts",
        "To the density",
        "Of the methods, on any model: a term",
        "A accounts",
        "A failed at sensitivity",
        "3 examples",
    ]
    assert len(texts) == len(starts) and all(map(str.startswith, texts, starts))


def test_names_with_a_comma_are_quoted():
    figure = {"shift_sensitivity": Measured(0.5)}
    only(
        findings_of({"FullGrad, complete": figure, "IG": figure}),
        "note",
        "maps of 'FullGrad, complete' and IG (1 - cosine",
    )


GOOD = {"A": {"infidelity": dataclasses.replace(beside(0.1, 0.3), reference=1.0)}}
BEST = GOOD | {"C": {"pixel_perturbation": beside(0.1, 0.3)}}
NONE = GOOD | {"C": {"pixel_perturbation": beside(-0.1, 0.3)}}
BAD = {"D": {"sensitivity_max": Measured(0.9)}}
WORSE = BAD | {"E": {"infidelity": Measured(1.0, reference=1.0)}}
FITS = {"density_ratio": Measured(-0.5, low=-0.9, high=-0.1)}
LIES = {"density_ratio": Measured(0.5, low=0.1, high=0.9)}


@pytest.mark.parametrize(
    ("methods", "model", "text"),
    [
        ({}, {}, "These figures do not tell."),
        ({"A": {"completeness_gap": Measured(None)}}, {}, "These figures do not tell."),  # and a note
        ({"B": {"shift_sensitivity": Measured(0.5)}}, {}, "These figures do not tell."),  # of the method, on any model
        (GOOD, {}, "These figures do not tell: nothing speaks against it, but few checks could speak for it."),
        (BEST, {}, "These figures do not tell: nothing speaks against it, but few checks could speak for it."),
        (BEST, FITS, "As far as these checks go, yes, by C: nothing was found against the model."),
        # What speaks against other methods does not speak against the model.
        (BEST | WORSE, FITS, "As far as these checks go, yes, by C: nothing was found against the model."),
        (NONE, FITS, "Not without care: none of these methods shows what the model uses."),
        (BEST, LIES, "Not without care: the one finding about the model speaks against it."),
        (NONE, LIES, "Not without care: the one finding about the model speaks against it."),
        (BAD, {}, "Not without care: the one finding speaks against it."),
        (GOOD | BAD, {}, "Not without care: 1 of 2 findings speaks against it."),
        (WORSE, {}, "Not without care: 2 of 2 findings speak against it."),
    ],
)
def test_verdict(methods, model, text):
    assert report_of(methods, model).verdict == text
    also_failed = methods | {"F": {"seconds": failed()}}
    assert report_of(also_failed, model).verdict == f"{text} Some of it could not be measured."


def test_a_model_can_be_cleared_without_methods():
    model = FITS | {"gan_test": Measured(0.5, low=0.41, high=0.9, reference=0.8)}
    assert report_of({}, model).verdict.startswith("These figures do not tell: nothing speaks against it")
    model |= {"common_gradient": Measured(0.0, low=0.0, high=0.001)}
    assert report_of({}, model).verdict == "As far as these checks go, yes: nothing was found against the model."


def test_of_several_findings_about_the_model():
    samples = {"gan_test": Measured(0.5, low=0.41, high=0.9, reference=0.8)}
    text = "Not without care: 1 of 2 findings about the model speaks against it."
    assert report_of(BEST, LIES | samples).verdict == text
    probabilities = report_of(BEST, FITS, settings={"outputs": "probabilities"})
    assert probabilities.verdict == text


# The recommendation


def choice_of(*figures, **more):
    methods = {name: {"pixel_perturbation": figure} for name, figure in zip("ABCDE", figures, strict=False)}
    for name, figure in more.items():
        for method, measured in figure.items():
            methods[method][name] = measured
    return report_of(methods).recommendation()


def test_the_best_that_beats_every_control_is_recommended():
    choice = choice_of(beside(0.1, 0.3), beside(0.3, 0.5, 0.4), beside(-0.1, 1.0, 0.5))
    assert (choice.method, choice.candidates, choice.answer) == ("B", ("B", "A"), "Use B.")
    assert (
        choice.measured
        and "Of 3 methods" in str(choice)
        and "0.4 [0.3, 0.5] beyond a blob in the centre" in str(choice)
    )
    assert "This cannot tell" in choice.reasons[-1]
    alone = choice_of(beside(0.1, 0.3), beside(-0.1, 0.3))
    assert alone.method == "A" and "No other method" in str(alone)
    assert "No other" not in str(choice_of(beside(0.1, 0.3)))


def test_none_of_these_is_an_answer():
    choice = choice_of(beside(-0.1, 0.3), beside(-0.2, 0.5, 0.4, control="the input itself"))
    assert (choice.method, choice.candidates, choice.answer) == (None, (), "Use none of these.")
    assert "The closest, B, has 0.15 [-0.2, 0.5] beyond the input itself" in str(choice)
    one = choice_of(beside(-0.1, 0.3))
    assert one.answer == "Do not use A." and "no better than a control" in str(one)
    unmeasured = report_of({"A": row()}).recommendation()
    assert unmeasured.method is None and not unmeasured.measured and "pixel_perturbation" in str(unmeasured)
    few = report_of({"A": {"pixel_perturbation": beside(0.1, 0.3)}}, settings={"examples": 9}).recommendation()
    assert few.method is None and not few.measured and "10 examples" in str(few)


def test_maps_that_stay_at_random_weights_are_out():
    same = {"randomisation": {"B": Measured(0.8, low=0.7, high=0.9)}}
    choice = choice_of(beside(0.1, 0.3), beside(0.3, 0.5, 0.4), **same)
    assert choice.candidates == ("A",)
    both = {"randomisation": {name: Measured(0.8, low=0.7, high=0.9) for name in "AB"}}
    choice = choice_of(beside(0.1, 0.3), beside(0.3, 0.5, 0.4), **both)
    assert choice.method is None and "A and B show much the same" in str(choice)


def test_a_recommended_method_that_a_shift_moves_comes_with_its_cure():
    moved = {"shift_sensitivity": {"A": Measured(0.3)}}
    assert "CenteredLogits(model)` in place of the model." in str(choice_of(beside(0.1, 0.3), **moved))
    still = {"shift_sensitivity": {"A": Measured(0.0)}}
    assert "CenteredLogits" not in str(choice_of(beside(0.1, 0.3), **still))
    figure = {"pixel_perturbation": beside(0.3, 0.5, 0.4), "shift_sensitivity": Measured(0.3)}
    twin = report_of({"A": figure, "A, centered": {"pixel_perturbation": beside(0.1, 0.3)}}).recommendation()
    assert "('A, centered' here)" in str(twin)


def test_how_sure_a_recommendation_is():
    # The first has 1 more for a half of the examples and 1 less for the other, but for the last two: a toss-up.
    near = tuple(float(i % 2) for i in range(20))
    far = tuple(value - 5 for value in near)
    other = (*(1 - value for value in near[:-1]), 0.9)
    figures = [
        dataclasses.replace(beside(0.1, 0.3, mean), values=values)
        for mean, values in ((0.3, near), (0.2, other), (0.1, far))
    ]
    text = str(choice_of(*figures))
    share = int(re.search(r"stays the best in (\d+)% of resamples", text).group(1))
    assert 40 <= share <= 60 and "; B cannot be told from it" in text
    assert "; B finds the same here." in str(choice_of(figures[0], figures[0], figures[2]))
    text = str(choice_of(figures[0], figures[2]))
    assert "stays the best in 100% of resamples of the examples." in text


def test_nothing_is_explained_at_chance():
    figure = Measured(0.1, low=0.05, high=0.2)
    assert report_of(GOOD, {"accuracy": figure}).verdict.startswith("No: it predicts these data no better than chance")
    unclear = dataclasses.replace(figure, value=0.15)
    assert report_of(GOOD, {"accuracy": unclear}).verdict.startswith("These figures")


def test_outputs_and_classes():
    only(findings_of(outputs="probabilities"), "warning", "look like probabilities", "without its last softmax")
    only(findings_of(explained_classes=1), "note", "explained as one class")
    assert findings_of(explained_classes=2) == findings_of(explained_classes=1, classes=1)[1:] == ()


# Tables, JSON, files


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
        *TITLES,
    ]
    assert [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]] == [
        "a",
        *(figure.text() for figure in row().values()),
    ]
    assert table.count("failed") == 6
    assert all(len(line) <= 118 for line in legend.splitlines())


def test_a_report_of_the_model_or_the_methods_alone():
    assert "method" not in report_of({}, {"accuracy": Measured(1.0)}).table().split("\n\n")[0]
    assert len(report_of({"a": row()}).table().split("\n\n")) == 2
    # Nothing to measure of methods that are there all the same.
    assert len(report_of({"a": {}}, {"accuracy": Measured(1.0)}).table().split("\n\n")) == 2


def test_summary(full):
    lines = full.summary().splitlines()
    answers = f"Can I trust this model's gradients? {full.verdict} Which of these methods? {full.recommendation()}"
    assert " ".join(full.summary().split()).startswith(answers)
    assert all(len(line) <= 118 for line in lines)
    starts = [line.partition(":")[0] for line in lines if line[:2] == "- "]
    marks = {"good": "- in favour", "warning": "- against", "note": "- note"}
    assert sorted(starts) == sorted(marks[finding.kind] for finding in full.findings)
    joined = " ".join(full.summary().split())
    assert all(joined.count(finding.text) == 1 and finding.advice in joined for finding in full.findings)
    questions = [line.partition("?")[0] for before, line in itertools.pairwise(lines) if not before]
    assert [each["question"] for each in full.to_dict()["answers"]] == [f"{question}?" for question in questions[:-1]]
    assert questions[0] == "Does the model know these data"
    assert joined.endswith("1 example skipped that could not be read: cat/<1>.png (OSError: truncated)")
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
    result = full.to_dict()
    assert result["verdict"] == full.verdict
    assert result["recommendation"]["answer"] == full.recommendation().answer
    assert [Finding(**each) for each in result["findings"]] == list(full.findings)
    assert AuditReport.from_dict({**result, "time": "now", "verdict": "Yes."}) == full
    for change in ({"methods": {}}, {"model": {}}, {"skipped": ()}, {"shown": None}, {"settings": SETTINGS}):
        assert dataclasses.replace(full, **change) != full


def test_a_report_of_an_earlier_version_is_read():
    content = report_of({"a": {"pixel_perturbation": beside(0.1, 0.3)}}).to_dict()
    figure = content["methods"]["a"]["pixel_perturbation"]
    assert figure["controls"][0]["name"] == "a blob in the centre"
    del figure["controls"]
    earlier = AuditReport.from_json(json.dumps(content))
    assert earlier.methods["a"]["pixel_perturbation"] == dataclasses.replace(beside(0.1, 0.3), controls=())
    assert not earlier.recommendation().measured and "strongest control" not in earlier.table()
    assert 'class="control"' not in earlier.to_html()


def test_controls_stand_in_the_table_and_on_the_page():
    figures = {
        "a": beside(0.1, 0.3),
        "b": dataclasses.replace(beside(-0.3, -0.1), note="not compared with x: E"),
        "c": beside(-0.1, 0.3, control="the input itself"),
        "d": beside(0.01, 0.39),
    }
    report = report_of({name: {"pixel_perturbation": figure} for name, figure in figures.items()})
    cells = [row.split(" | ")[-1].strip(" |") for row in report.table().splitlines()[2:6]]
    assert cells == [
        "a blob in the centre, 0",
        "a blob in the centre, 0.4",
        "the input itself, 0.1",
        "a blob in the centre, 0",
    ]
    page = Tree(report.to_html()).text
    assert "Use a." in page.partition("Do the maps find")[0]
    table = page.partition("Do the maps find what the model uses? Yes, by 1 of 4 methods.")[2]
    assert "beats every control: 0.2 [0.1, 0.3] better than a blob in the centre" in table
    assert "worse than a blob in the centre: -0.2 [-0.3, -0.1]" in table
    assert "no better than the input itself: 0.1 [-0.1, 0.3]" in table and "b: not compared with x: E." in table
    assert "not surely better than a blob in the centre: 0.2 [0.01, 0.39], where the best of 4 is" in table
    (panel,) = (image["alt"] for image in Tree(report.to_html()).all("img"))
    assert "(strongest control: a blob in the centre, 0)" in panel


def test_common_controls_have_rows_and_others_columns():
    common, own = "a blob in the centre", "its map at random weights"
    methods = {
        name: {
            "pixel_perturbation": Measured(
                value, controls=(Control(common, 0.2, 0, -1, 1), Control(own, value / 10, 0, -1, 1))
            )
        }
        for name, value in (("a", 0.1), ("b", 0.3))
    }
    for name, zero in (("a", 4.0), ("b", 5.0)):
        controls = tuple(Control(each, 2.0, 0, -1, 1) for each in (common, own))
        methods[name]["infidelity"] = Measured(1.0, reference=zero, controls=controls)
    page = report_of(methods).to_html().partition("Do the maps find")[2]
    lines = [[re.sub("<.*?>", "", text) for _, _, text in each][:-1] for each in cells(page)]
    first, second = lines[:4], lines[4:9]
    assert first == [
        ["best first", "pixels beyond chance", own],
        ["b", "0.3", "0.03"],
        [common, "0.2", ""],
        ["a", "0.1", "0.01"],
    ]
    assert second[0] == ["best first", "infidelity", "a map of zeros"]
    assert second[1:3] == [["a", "1", "4"], ["b", "1", "5"]] and {each[0] for each in second[3:]} == {common, own}
    assert len([each for each in re.findall("<tr[^>]*>", page) if "control" in each]) == 3


def answer_of(question, methods=None, model=None, **settings):
    """The answer to the only question with these words."""
    report = report_of({} if methods is None else methods, model, settings=settings)
    (answer,) = (each["answer"] for each in report.to_dict()["answers"] if question in each["question"])
    assert answer in " ".join(report.summary().split())
    return answer


def test_answers_about_the_model():
    def share(low, high):
        return {"common_gradient": Measured((low + high) / 2, low=low, high=high)}

    assert answer_of("know these", model={"accuracy": Measured(0.9, low=0.8, high=1)}).startswith("Yes: accuracy 0.9")
    assert answer_of("know these", model={"accuracy": Measured(0.1, low=0.0, high=0.2)}) == "No."
    assert answer_of("know these", model={"accuracy": Measured(0.15, low=0.1, high=0.2)}, examples=8).endswith(
        "8 examples."
    )
    assert answer_of("know these", model={"accuracy": Measured(None, note="no labels")}) == "Not measured: no labels."
    assert answer_of("common", model=share(0.5, 0.6)).startswith("Yes")
    assert answer_of("common", model=share(0.1, 0.2)).startswith("No")
    assert answer_of("common", model=share(0.1, 0.6), examples=8) == "Cannot be told from 8 examples."
    good, bad = Measured(0.01, low=0.0, high=0.02), Measured(0.6, low=0.5, high=0.7)
    assert answer_of("lie", model={"finite_difference_gap": good}) == "No sign of it."
    unmeasured = {"finite_difference_gap": good, "off_manifold_gradient": Measured(None, note="too few")}
    assert answer_of("lie", model=unmeasured) == "No sign of it in what could be measured."
    assert answer_of("lie", model={"finite_difference_gap": bad}) == "There are signs of it."
    # What is common to all outputs may have been put there as well.
    assert answer_of("lie", model={"finite_difference_gap": good} | share(0.5, 0.6)) == "There are signs of it."
    assert answer_of("density", model={"density_ratio": Measured(0.5, low=0.1, high=0.9)}) == "No."
    assert answer_of("density", model={"density_ratio": Measured(None, failed=True)}) == "It could not be measured."


def test_answers_about_the_methods():
    same, other, unclear = (Measured(v, low=v - 0.1, high=v + 0.1) for v in (0.8, 0.2, 0.5))
    assert answer_of("depend", of("randomisation", same)) == "No."
    assert answer_of("depend", of("randomisation", other)).startswith("Yes: the map comes out otherwise")
    assert "correlation 0.2, where 1" in answer_of("depend", of("randomisation", other, other))
    assert answer_of("depend", of("randomisation", unclear), examples=8) == "Cannot be told from 8 examples."
    mixed = answer_of("depend", of("randomisation", other, same, unclear))
    assert mixed.startswith("Those of 1 of 3 methods do") and mixed.endswith("; of C it cannot be told.")
    assert answer_of("depend", of("randomisation", same, unclear)).startswith("Those of 1 of 2 methods do not; of B")
    better, level = beside(0.1, 0.3), beside(-0.1, 0.3)
    assert answer_of("find", of("pixel_perturbation", better)) == "Yes."
    assert answer_of("find", of("pixel_perturbation", better, level)) == "Yes, by 1 of 2 methods."
    assert answer_of("find", of("pixel_perturbation", better, better)) == "Yes, by all of 2 methods."
    assert answer_of("find", of("pixel_perturbation", level, level)).startswith("No: none of 2 methods")
    assert answer_of("find", of("pixel_perturbation", level)).startswith("No better than")
    few = answer_of("find", of("pixel_perturbation", better), examples=8)
    assert few == "Cannot be told from 8 examples: it takes 10."
    assert answer_of("else", of("seconds", Measured(0.5), Measured(0.25))) == "Seconds 0.25 to 0.5."


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
    pages, pictures, arrays = written[:3], written[3:5], written[5:]
    assert pages == ["report.html", "report.json", "table.md"]
    assert pictures == ["figures.png", "saliency.png"] and arrays == ["figures.csv", "maps.npz"]
    assert (out / "report.html").read_text(encoding="utf-8") == whole_page
    assert AuditReport.from_json((out / "report.json").read_text(encoding="utf-8")) == full
    assert (out / "table.md").read_text(encoding="utf-8") == f"{full}\n"
    images = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', whole_page)]
    for name, image in zip(pictures, (images[1], images[0]), strict=True):
        with Image.open(out / name) as whole, Image.open(io.BytesIO(image)) as part:  # the page's first, in the corner
            assert whole.crop((0, 0, *part.size)).tobytes() == part.tobytes() and whole.height > part.height
    small = report_of({"a": {"seconds": Measured(1.0)}})
    assert small.save(str(out)) == [*pages, "figures.png", "figures.csv"]  # over what is there
    assert sorted(path.name for path in out.iterdir()) == sorted([*pages, "figures.png", "figures.csv"])
    assert AuditReport.from_json((out / "report.json").read_text(encoding="utf-8")) == small
    assert report_of({}, {"accuracy": Measured(1.0)}).save(tmp_path / "bare") == [*pages, "figures.csv"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        small.save(tmp_path / "file")


def test_other_programs_load_figures_and_maps(tmp_path, full):
    full.save(tmp_path)
    with (tmp_path / "figures.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    measured = {("", name): each for name, each in full.model.items()}
    measured |= {(method, name): each for method, figures in full.methods.items() for name, each in figures.items()}
    assert [(line["method"], line["figure"]) for line in lines] == list(measured)
    for line, each in zip(lines, measured.values(), strict=True):
        numbers = [each.value, each.spread, each.low, each.high, each.reference]
        columns = ["value", "spread", "low", "high", "reference"]
        assert [None if line[name] == "" else float(line[name]) for name in columns] == numbers
        assert line["note"] == each.note and line["better"]
        control = each.controls[0] if each.controls else None
        assert line["strongest_control"] == ("" if control is None else control.name)
        assert line["control_value"] == ("" if control is None else str(control.value))
    with np.load(tmp_path / "maps.npz") as arrays:
        assert set(arrays) == {"inputs", "targets", "labels", *(f"maps/{name}" for name in full.shown.maps)}
        assert arrays["targets"].tolist() == list(full.shown.targets)
        assert np.array_equal(arrays["inputs"], full.shown.images.numpy())
        for name, values in full.shown.maps.items():
            assert np.array_equal(arrays[f"maps/{name}"], values.numpy())


# The page

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
    parts = "html head meta title style body main section div h1 h2 h3 p ul li span code figure img".split()
    assert set(names) <= {*parts, *"table thead tbody tr th td small".split()}


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
    assert NAUGHTY.replace("`", "") in Tree(advised.to_html()).text.split("infidelity")[0]
    assert "<b>" not in advised.to_html()
    title = next(data for path, data in Tree(whole_page).found if path[-1:] == ("title",))
    assert title == f"Audit of {NAUGHTY}"


def test_pictures_have_words_that_hold_their_figures(full, whole_page):
    images = Tree(whole_page).all("img")
    alts = [image["alt"] for image in images]
    assert [alt.split(" by method, ")[0] for alt in alts[1:]] == TITLES
    assert NAUGHTY in alts[1] and "0.01 ± 0.001" in alts[1]
    assert "2 of the audited images, of the explained classes 0, 1" in alts[0]
    assert all(name in alts[0] for name in ("Saliency", NAUGHTY, "partly"))
    assert all(int(image["width"]) > 100 and int(image["height"]) > 50 for image in images)


def test_tokens_are_coloured_text():
    words = ("a", "<b>&", "fine", "", "[PAD]", "[PAD]", "[PAD]")
    maps = texts(
        [words], {"IG": [[1.0, -0.5, 0.0, 0.1, 0.0, 0.0, 0.0]], NAUGHTY: [[0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0]]}
    )
    page = report_of({}, shown=maps).to_html()
    tree = Tree(page)
    assert not tree.all("img") and "<b>&" in tree.text and NAUGHTY in tree.text
    tokens = [attrs for attrs in tree.all("span") if attrs["class"].startswith("token")]
    assert [attrs["class"] for attrs in tokens[:4]] == ["token p8", "token n4", "token", "token p1"]
    assert [attrs["title"] for attrs in tokens[:4]] == ["1", "-0.5", "0", "0.1"]
    assert len(tokens) == 8 and tree.text.count("and 3 more without colour") == 2
    assert "predicted <good>, label bad" in tree.text
    for sign in "pn":
        assert all(f".captum-density .{sign}{level} {{background: #" in page for level in range(1, 9))


def test_long_texts_have_a_value_for_some_tokens_together():
    maps = texts([tuple(f"word{i}" for i in range(1024))], {"IG": [[1.0] + [0.5] * 510 + [-1.0]]})
    tokens = [attrs for attrs in Tree(report_of({}, shown=maps).to_html()).all("span") if "title" in attrs]
    assert [attrs["title"] for attrs in tokens[:3] + tokens[-3:]] == ["1", "1", "0.5", "0.5", "-1", "-1"]
    assert len(tokens) == 1024


def test_many_maps_are_in_groups():
    names = [f"method {i}" for i in range(14)]
    alts = [image["alt"] for image in Tree(report_of({}, shown=pictures(names, images=1)).to_html()).all("img")][-3:]
    groups = [re.findall(r"method \d+", alt) for alt in alts]
    assert [len(part) for part in groups] == [5, 5, 4] and [name for part in groups for name in part] == names
    six = [image["alt"] for image in Tree(report_of({}, shown=pictures(names[:6], images=1)).to_html()).all("img")]
    assert all(name in six[-1] for name in names[:6])


def cells(text):
    """The tables' rows as texts, a cell being its tag and its text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, flags=re.S)
    return [re.findall(r"<(t[hd])([^>]*)>(.*?)</t[hd]>", each, flags=re.S) for each in rows]


def test_tables_have_scopes_and_labels(full, whole_page):
    rows = cells(whole_page)
    labels = []
    for (tag, attributes, _), *rest in rows:
        assert tag == "th"
        if 'scope="col"' in attributes:
            labels = [re.sub("<.*?>", "", text) for _, _, text in rest]
            assert all(tag == "th" and 'scope="col"' in attributes for tag, attributes, _ in rest)
        else:
            assert 'scope="row"' in attributes and len(rest) == len(labels)
            for (tag, attributes, text), label in zip(rest, labels, strict=True):
                assert tag == "td" and (f'data-label="{label}"' in attributes) == bool(text)
    lines = [[re.sub("<.*?>", "", text) for _, _, text in row] for row in rows]
    assert ["accuracyhigher is better", "0.9 [0.8, 0.95]", "at chance"] in [line[:3] for line in lines]
    saliency = [cell for line in lines if line[0] == "Saliency" for cell in line[1:]]
    for name, figure in full.methods["Saliency"].items():
        beside = {"infidelity": "a map of zeros: 2", "pixel_perturbation": "area of a random ranking: 0.3"}.get(
            name, ""
        )
        assert figure.text() + beside in saliency, name


def test_tables_hold_what_was_measured():
    methods = {
        "a": {"randomisation": Measured(0.2, low=0.1, high=0.3), "class_likeness": Measured(None, note="too dear")},
        "b": {"randomisation": Measured(None, note="too dear"), "class_likeness": Measured(None, note="too dear")},
    }
    page = report_of(methods).to_html()
    heads, *rows = cells(page.partition("Do the maps depend on the model?")[2])
    assert [text for _, _, text in heads] == ["method", "likeness at random weights"]
    assert [row[0][2] for row in rows] == ["a"]
    assert "Likeness of second class: too dear." in Tree(page).text.partition("What was not measured")[2]


def test_an_error_is_said_once_on_the_page(full, whole_page):
    text = Tree(whole_page).text
    for error in ('RuntimeError: <i>no</i> & "none"', "ValueError: <u>a tensor</u>", "OSError: other"):
        assert text.count(error) == len([finding for finding in full.findings if error in finding.text]) > 0
    assert "partly failed at sensitivity: ValueError: <u>a tensor</u>" in text
    assert text.count("the method promises no sum") == 1


def test_the_page_says_all_findings(full, whole_page):
    tree = Tree(whole_page)
    assert full.verdict in tree.text
    kinds = {"good": "in favour:", "warning": "against:", "note": "note:"}
    for finding in full.findings:
        assert f"{kinds[finding.kind]} {finding.text}" in tree.text
        assert finding.advice.replace("`", "") in tree.text.replace("`", "")
    kinds_shown = [attrs["class"] for attrs in tree.all("li") if "class" in attrs]
    assert all(kinds_shown.count(kind) >= sum(f.kind == kind for f in full.findings) for kind in kinds)
    assert tree.text.index("Do the maps find what the model uses?") < tree.text.index("What was not measured")
    assert "1 example skipped that could not be read" in tree.text
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
