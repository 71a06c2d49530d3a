"""What a retraining result says of its bits: scores, intervals, words, table, picture."""

import html.parser
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captum_density.metrics import RetrainingResult

SIDES = {"diff_roar": ("top", "bottom"), "roar": ("bottom",), "kar": ("top",)}
RUNS, EXAMPLES = 3, 400


def bits(*accuracies, fractions=2):
    """(1, sides, K, R, M) bits of given accuracies for each side, the same at all fractions, runs differ a little."""
    out = torch.zeros(1, len(accuracies), fractions, RUNS, EXAMPLES, dtype=torch.bool)
    for side, accuracy in enumerate(accuracies):
        for run in range(RUNS):
            count = round(accuracy * EXAMPLES) + (run - 1 if 0 < accuracy < 1 else 0)
            out[0, side, :, run, :count] = True
    return out


def result(metric, accuracies, controls=(), *, unmasked=0.95, chance=0.25, names=("a",), counts=(10, 25), **options):
    """Of one attribution, or of several that are alike."""
    each = {name: bits(*a, fractions=len(counts)) for name, a in {"": accuracies, **dict(controls)}.items()}
    several = {
        name: b if name == "random" else b.expand(len(names), -1, -1, -1, -1).clone() for name, b in each.items()
    }
    return RetrainingResult(
        metric=metric,
        attributions=tuple(names),
        sides=SIDES[metric],
        fractions=tuple(count / 100 for count in counts),
        counts=tuple(counts),
        d=100,
        correct=several.pop(""),
        controls=several,
        unmasked=bits(unmasked)[0, 0, 0],
        chance=chance,
        engines={"loop": (7, "it was asked for")},
        stored=0,
        seconds=1.5,
        **options,
    )


def at_random(metric="diff_roar", a=2, k=3, runs=4, examples=50, counts=(10, 30, 100), controls=(), seed=0):
    torch.manual_seed(seed)
    sides = len(SIDES[metric])
    correct = torch.rand(a, sides, k, runs, examples) < 0.6
    others = {c: torch.rand(1 if c == "random" else a, sides, k, runs, examples) < 0.5 for c in controls}
    return RetrainingResult(
        metric=metric,
        attributions=tuple("ab"[:a]),
        sides=SIDES[metric],
        fractions=tuple(c / 100 for c in counts),
        counts=counts,
        d=100,
        correct=correct,
        controls=others,
        unmasked=torch.rand(runs, examples) < 0.9,
        chance=0.25,
        engines={"loop": (3, "it was asked for")},
        stored=1,
        seconds=2.0,
    )


CONTROLS = ("random", "input_agnostic", "mask_only", "blurred")


# Figures


@pytest.mark.parametrize("metric", SIDES)
def test_figures_are_means_by_hand(metric):
    outcome = at_random(metric, controls=CONTROLS)
    correct = outcome.correct.numpy()
    assert outcome.predictive_power.shape == (2, len(SIDES[metric]), 3, 4)
    for i, k in itertools.product(range(2), range(3)):
        accuracy = [sum(correct[i, s, k].reshape(-1).tolist()) / 200 for s in range(len(SIDES[metric]))]
        expected = accuracy[0] - accuracy[1] if metric == "diff_roar" else accuracy[0]
        assert outcome.score[i, k].item() == pytest.approx(expected)
        for s, r in itertools.product(range(len(SIDES[metric])), range(4)):
            assert outcome.predictive_power[i, s, k, r].item() == pytest.approx(correct[i, s, k, r].mean())
    # The mean is over the first two fractions: at 1, nothing is removed (or everything).
    assert torch.allclose(outcome.means()[:, 0], outcome.score[:, :2].mean(1))
    for control in CONTROLS:
        n = 1 if control == "random" else 2
        assert outcome.control_power(control).shape == (n, len(SIDES[metric]), 3, 4)
        assert outcome.control_score(control).shape == (n, 3) and outcome.control_intervals(control).shape == (n, 3, 2)
        assert outcome.means(control).shape == (n, 3) and outcome.difference(control).shape == (2, 3)
        expected = outcome.means()[:, 0] - outcome.means(control)[:, 0]
        assert torch.allclose(outcome.difference(control)[:, 0], expected)
    assert outcome.intervals.shape == (2, 3, 2)
    low, high = outcome.intervals.unbind(-1)
    assert (low <= outcome.score).all() and (outcome.score <= high).all() and (low < high).all()
    with pytest.raises(KeyError):
        outcome.control_score("blur")


def test_a_difference_is_of_pairs():
    """Two attributions of accuracies 0.5 and 0.52 on the same hard examples: apart, the intervals overlap."""
    torch.manual_seed(0)
    base = (torch.arange(EXAMPLES) < EXAMPLES // 2).expand(1, 1, 2, RUNS, -1)
    better = base | (torch.arange(EXAMPLES) < EXAMPLES // 2 + 12)
    outcome = result("kar", [0.5])
    outcome = replace(outcome, correct=better.clone(), controls={"random": base.clone()})
    low, high = outcome.difference("random")[0, 1:].tolist()
    assert 0 < low < 0.03 < high and high - low < 0.04
    apart = outcome.means()[0], outcome.means("random")[0]
    assert apart[0][1] < apart[1][2]  # they overlap
    assert outcome.difference("random")[0, 0].item() == pytest.approx(0.03)
    # Of itself, it is nothing at all.
    same = replace(outcome, controls={"random": better.clone()})
    assert same.difference("random").tolist() == [[0, 0, 0]]


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 30))
def test_intervals_of_any_shape_hold_their_score(seed, runs, examples):
    outcome = at_random(
        "diff_roar", k=2, runs=runs, examples=examples, counts=(10, 100), controls=["random"], seed=seed
    )
    low, high = outcome.intervals.unbind(-1)
    assert ((low <= high) & (low >= -1) & (high <= 1)).all()
    assert not outcome.means().isnan().any() and outcome.conclusions and outcome.table() and outcome.to_json()


def test_only_everything_leaves_no_mean():
    outcome = at_random("roar", k=1, counts=(100,), controls=["random"])
    assert outcome.means().isnan().all() and outcome.difference("random").isnan().all()
    assert outcome.to_dict()["means"] == [[None] * 3] * 2
    assert "| -" in outcome.table() and "nan" not in outcome.table() + outcome.to_json() + repr(outcome)


# The hash


def test_digest_is_of_every_bit_and_its_place():
    outcome = at_random(controls=CONTROLS)
    assert outcome.digest == at_random(controls=CONTROLS).digest and len(outcome.digest) == 32
    digests = {outcome.digest}
    for name in ("correct", "unmasked"):
        flipped = getattr(outcome, name).clone()
        flipped.view(-1)[-1] ^= True
        digests.add(replace(outcome, **{name: flipped}).digest)
    for control in CONTROLS:
        flipped = outcome.controls[control].clone()
        flipped.view(-1)[0] ^= True
        digests.add(replace(outcome, controls={**outcome.controls, control: flipped}).digest)
    assert len(digests) == 7
    # The same bits in another shape, or of another control, are others.
    a, sides, k, runs, examples = outcome.correct.shape
    moved = outcome.correct.reshape(a, sides, k, examples, runs)
    assert replace(outcome, correct=moved).digest not in digests
    one = {"mask_only": outcome.controls["blurred"]}, {"blurred": outcome.controls["blurred"]}
    assert len({replace(outcome, controls=c).digest for c in one}) == 2
    # The order of controls does not matter, nor what is beside the predictions.
    turned = dict(reversed(outcome.controls.items()))
    assert replace(outcome, controls=turned, seconds=9.0).digest == outcome.digest


# As values


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("metric", SIDES)
def test_json_holds_all_figures(metric):
    outcome = at_random(metric, controls=CONTROLS)
    read = strict(outcome.to_json())
    assert read == outcome.to_dict()
    assert read["metric"] == metric and read["sides"] == list(SIDES[metric]) and read["runs"] == 4
    assert read["predictive_power"] == outcome.predictive_power.tolist()
    assert read["score"] == outcome.score.tolist() and read["intervals"] == outcome.intervals.tolist()
    assert read["means"] == outcome.means().tolist()
    assert read["unmasked_accuracy"] == outcome.unmasked.double().mean(1).tolist()
    for control in CONTROLS:
        assert read["controls"][control]["score"] == outcome.control_score(control).tolist()
        assert read["controls"][control]["means"] == outcome.means(control).tolist()
    assert read["digest"] == outcome.digest and read["conclusions"] == list(outcome.conclusions)
    assert read["engines"] == {"loop": {"models": 3, "reason": "it was asked for"}}
    assert read["test_examples"] == 50 and read["models_from_store"] == 1 and read["chance"] == 0.25


# In words

GOOD, POOR, CHANCE = 0.9, 0.5, 0.25


def words(metric, accuracies, **options):
    controls = {name: a for name, a in options.items() if name in CONTROLS}
    rest = {name: value for name, value in options.items() if name not in CONTROLS}
    return result(metric, accuracies, controls, **rest).conclusions


@pytest.mark.parametrize(
    ("accuracies", "claim"),
    [
        ((GOOD, POOR), "a: what it ranks high predicts better than what it ranks low (DiffROAR +0.400 [+0."),
        ((POOR, GOOD), "a: what it ranks low predicts better than what it ranks high (DiffROAR -0.400 [-0."),
        ((GOOD, GOOD), "a: what it ranks high and low predict alike, as far as these runs tell (DiffROAR 0.000 [0.000"),
    ],
)
def test_claims_of_diff_roar(accuracies, claim):
    (line,) = words("diff_roar", accuracies)
    assert line.startswith(claim) and line.endswith("], mean over fractions below 1).")
    harmless = {
        "random": (POOR, POOR),
        "input_agnostic": (POOR, POOR),
        "mask_only": (CHANCE, CHANCE),
        "blurred": accuracies,
    }
    assert words("diff_roar", accuracies, **harmless) == (line,)


@pytest.mark.parametrize(
    ("metric", "accuracy", "claim"),
    [
        ("kar", GOOD, "a: what it ranks high predicts better than as much taken at random (KAR 0.900 [0."),
        ("kar", 0.3, "a: what it ranks high predicts worse than as much taken at random (KAR 0.300 [0."),
        ("kar", POOR, "a: not told from a random ranking by these runs (KAR 0.500 [0."),
        ("roar", 0.3, "a: removing what it ranks high costs more accuracy than removing as much at random (ROAR 0.300"),
        ("roar", GOOD, "a: removing what it ranks high costs less accuracy than removing as much at random (ROAR 0.9"),
        ("roar", POOR, "a: not told from a random ranking by these runs (ROAR 0.500"),
    ],
)
def test_claims_of_kar_and_roar(metric, accuracy, claim):
    (line,) = words(metric, [accuracy], random=[POOR])
    assert line.startswith(claim) and "But" not in line
    harmless = {"input_agnostic": [POOR], "mask_only": [CHANCE], "blurred": [accuracy]}
    assert words(metric, [accuracy], random=[POOR], **harmless) == (line,)
    (line,) = words(metric, [accuracy])
    assert line.endswith("; without the random control there is nothing to compare it with.")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_random_ranking_that_does_as_well_is_named(sign):
    (line,) = words("diff_roar", (GOOD, POOR)[::sign], random=(GOOD, POOR)[::sign])
    score = "+0.400" if sign > 0 else "-0.400"
    assert f". But a random ranking ({score}) is not told from it by these runs, so that this shows nothing." in line
    (line,) = words("diff_roar", (GOOD, POOR)[::sign], random=(POOR, GOOD)[::sign])
    assert "But" not in line


@pytest.mark.parametrize(
    ("metric", "accuracies", "agnostic", "shows"),
    [
        ("diff_roar", (GOOD, POOR), (GOOD, POOR), "as much, as far as these runs tell (+0.400)"),
        # Two of 400 examples less tell nothing.
        ("diff_roar", (GOOD, POOR), (0.895, POOR), "as much, as far as these runs tell (+0.395)"),
        ("diff_roar", (GOOD, POOR), (GOOD, 0.3), "more of it (+0.600)"),
        ("diff_roar", (POOR, GOOD), (0.3, GOOD), "more of it (-0.600)"),
        ("kar", [GOOD], [0.95], "more of it (0.950)"),
        ("kar", [0.3], [0.2], "more of it (0.200)"),
        ("roar", [0.3], [0.2], "more of it (0.200)"),
        ("roar", [GOOD], [0.95], "more of it (0.950)"),
    ],
)
def test_one_ranking_that_does_as_well_for_all_examples_is_named(metric, accuracies, agnostic, shows):
    random = (POOR, POOR)[: len(accuracies)]
    line = words(metric, accuracies, random=random, input_agnostic=agnostic)[0]
    assert line.endswith(
        f". But one ranking for all examples shows {shows}, so that nothing is shown of single examples."
    )
    assert "But" not in words(metric, accuracies, random=random, input_agnostic=random)[0]


@pytest.mark.parametrize(
    ("accuracies", "masks", "named"),
    [
        # What the masks of the better side tell, against the worse side's pixels.
        ((GOOD, POOR), (0.8, 0.8), "0.800 (high) and 0.800 (low), where what they keep does with 0.900 and 0.500"),
        ((GOOD, POOR), (0.4, 0.4), None),
        ((GOOD, POOR), (0.3, 0.9), None),
        ((POOR, GOOD), (0.3, 0.8), "0.300 (high) and 0.800 (low), where what they keep does with 0.500 and 0.900"),
        ((POOR, GOOD), (0.9, 0.3), None),
    ],
)
def test_masks_that_may_make_the_difference_are_named(accuracies, masks, named):
    (line,) = words("diff_roar", accuracies, mask_only=masks)
    if named is None:
        assert "But" not in line
    else:
        assert f". But its masks alone, without any input value, predict with accuracy {named}, so that part of" in line


def test_masks_that_hide_a_difference_are_named():
    (line,) = words("diff_roar", (GOOD, GOOD), mask_only=(0.9, 0.95))
    assert line.endswith(
        ". But its masks alone, without any input value, predict the class with accuracy 0.900 and 0.950 (largest "
        "class: 0.250), so that the masks' shape may hide a difference."
    )
    assert "But" not in words("diff_roar", (GOOD, GOOD), mask_only=(0.7, 0.7))[0]
    # Pixels at chance, and masks as well.
    assert "But" not in words("diff_roar", (CHANCE, CHANCE), mask_only=(CHANCE, CHANCE))[0]


def test_masks_that_tell_the_class_are_named_in_kar_and_roar():
    for accuracy in (GOOD, POOR, 0.3):  # better than random, alike, worse
        line = words("kar", [accuracy], random=[POOR], mask_only=[0.92])[0]
        assert line.endswith(
            ". But its masks alone, without any input value, score 0.920, so that the class may be read off the "
            "masks' shape."
        )
        assert "But" not in words("kar", [accuracy], random=[POOR], mask_only=[CHANCE])[0]
        line = words("roar", [accuracy], random=[POOR], mask_only=[POOR])[0]
        assert line.endswith(
            ". But its masks alone, without any input value, predict the class with accuracy 0.500 (largest class: "
            "0.250), so that the accuracy left may overstate what remains."
        )
        assert "But" not in words("roar", [accuracy], random=[POOR], mask_only=[CHANCE])[0]
    assert "But" not in words("kar", [GOOD], random=[POOR], mask_only=[0.7])[0]  # values tell more


@pytest.mark.parametrize(
    ("metric", "accuracies", "blurred", "score"),
    [
        ("diff_roar", (GOOD, POOR), (0.95, POOR), "+0.450"),
        ("diff_roar", (POOR, POOR), (GOOD, POOR), "+0.400"),
        ("diff_roar", (POOR, GOOD), (POOR, POOR), "0.000"),
        ("kar", [GOOD], [0.95], "0.950"),
        ("kar", [POOR], [0.95], "0.950"),
        ("roar", [0.3], [0.2], "0.200"),
        ("roar", [POOR], [0.2], "0.200"),
    ],
)
def test_a_blur_that_scores_better_is_named(metric, accuracies, blurred, score):
    random = (POOR, POOR)[: len(accuracies)]
    line = words(metric, accuracies, random=random, blurred=blurred)[0]
    assert line.endswith(
        f". But the same attribution blurred, which knows nothing more of the model, scores better ({score}), so that "
        "a better score may mean no more than a smoother map."
    )
    worse = accuracies[::-1] if metric == "diff_roar" else [0.05] if metric == "kar" else [0.95]
    if accuracies[0] != accuracies[-1] or metric != "diff_roar":
        line = words(metric, accuracies, random=random, blurred=worse)[0]
        assert ("blurred" in line) == (metric == "diff_roar" and accuracies[0] < accuracies[1])


def test_models_that_learn_nothing_are_named():
    for unmasked, chance, named in ((0.28, 0.25, True), (0.4, 0.25, False), (0.97, 0.95, True), (1.0, 0.97, False)):
        first = words("kar", [GOOD], unmasked=unmasked, chance=chance)[0]
        assert first.startswith("Even on whole examples the models reach") == named
        if named:
            assert f"accuracy of {unmasked:.2f} only (largest class: {chance:.2f})" in first


@pytest.mark.parametrize(("metric", "what"), [("diff_roar", "nothing"), ("kar", "nothing"), ("roar", "everything")])
def test_nothing_follows_from_everything(metric, what):
    accuracies = [GOOD] * len(SIDES[metric])
    outcome = words(metric, accuracies, counts=(100,), random=accuracies, mask_only=accuracies, blurred=accuracies)
    assert outcome == (f"{what} was removed, so there is nothing to conclude: give fractions below 1",)


def test_each_attribution_has_its_sentence_and_its_own_controls():
    one = result("kar", [GOOD], {"random": [POOR], "mask_only": [CHANCE]}, names=("a", "b"))
    masks = torch.cat([bits(CHANCE), bits(GOOD)])
    outcome = replace(one, controls={**one.controls, "mask_only": masks})
    assert len(outcome.conclusions) == 2
    assert outcome.conclusions[0].startswith("a: ") and "masks" not in outcome.conclusions[0]
    assert (
        outcome.conclusions[1].startswith("b: ")
        and "masks alone, without any input value, score 0.900" in (outcome.conclusions[1])
    )


# As a table


def cells(line):
    """The cells of a row of a Markdown table: GitHub splits at every bar that has no backslash before it."""
    inner = line.strip().removeprefix("|").removesuffix("|").replace("\\|", "\0")
    return [cell.strip().replace("\0", "|") for cell in inner.split("|")]


def test_table_has_a_row_for_each_ranking():
    outcome = result(
        "diff_roar", (GOOD, POOR), {c: (POOR, POOR) for c in CONTROLS}, names=("IG", "b"), notes=("Note.",)
    )
    lines = outcome.table().split("\n")
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert rows[0] == ["ranking", "mean, 95% interval", "kept 0.1 (10)", "kept 0.25 (25)"]
    others = [[f"{name}, {c}" for c in CONTROLS[1:]] for name in ("IG", "b")]
    assert [row[0] for row in rows[2:]] == ["IG", *others[0], "b", *others[1], "random"]
    assert all(len(row) == 4 for row in rows) and len({len(line) for line in lines if line.startswith("|")}) == 1
    low, high = outcome.means()[0, 1:].tolist()
    assert rows[2][1:] == [f"+0.400 [{low:+.3f}, {high:+.3f}]", "+0.400", "+0.400"] and rows[3][2] == "0.000"
    assert lines[-1] == "Note." and lines[-2] == outcome.conclusions[-1]
    assert "nothing removed: accuracy 0.950, largest class: 0.250" in lines[-4]
    assert "removed 0.1 (10)" in result("roar", [GOOD]).table() and "lower is better" in result("roar", [GOOD]).table()


NASTY = ("a|b", "<script>alert(1)</script>", "x\ny", "& \\| |", "")


def test_names_do_not_break_the_table():
    outcome = result("kar", [GOOD], {"random": [POOR], "blurred": [POOR]}, names=NASTY)
    rows = [line for line in outcome.table().split("\n") if line.startswith("|")]
    assert len(rows) == 2 + 2 * 5 + 1
    assert {len(cells(row)) for row in rows} == {4}
    assert [cells(row)[0] for row in rows[2::2]][:3] == ["a|b", "<script>alert(1)</script>", "x y"]


class Parsed(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.cells = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert not attributes
        self.open.append(tag)
        self.tags.append(tag)
        if tag in ("td", "th", "li"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        assert self.open and self.open[-1] in ("td", "th", "li")
        self.cells[-1] += data


def test_html_is_well_formed_and_escaped():
    outcome = result("kar", [GOOD], {"random": [POOR]}, names=NASTY, notes=("1 < 2 & <b>",))
    parsed = Parsed(outcome._repr_html_())
    assert parsed.open == [] and "script" not in parsed.tags and "b" not in parsed.tags
    assert set(parsed.tags) == {"table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert parsed.tags.count("tr") == 1 + 5 + 1 and parsed.tags.count("td") == 4 * 6
    assert all(name in parsed.cells for name in NASTY) and parsed.cells[-1] == "1 < 2 & <b>"
    assert parsed.tags.count("li") == 2 + 5 + 1  # what it is, of how many; a conclusion for each; the note


def test_repr_is_a_line_of_what_follows():
    outcome = result("kar", [GOOD], {"random": [POOR]})
    assert repr(outcome).startswith("RetrainingResult(KAR: 1 attributions, 2 fractions, 3 runs; a: what it ranks high")


# As a picture


@pytest.mark.parametrize(
    ("metric", "count"), [("diff_roar", 1), ("diff_roar", 3), ("diff_roar", 7), ("roar", 1), ("kar", 4)]
)
def test_plot_has_axes_for_each_attribution(metric, count):
    names = tuple(f"attribution {i}" for i in range(count - 1))
    names += ("an attribution whose name is as long as what it does: IntegratedGradients, with noise and 50 steps",)
    accuracies = (GOOD, POOR)[: len(SIDES[metric])]
    outcome = result(metric, accuracies, {c: accuracies for c in CONTROLS}, names=names)
    thinned = {c: b & (torch.rand(b.shape) < 0.9) for c, b in outcome.controls.items()}
    outcome = replace(outcome, correct=outcome.correct & (torch.rand(outcome.correct.shape) < 0.9), controls=thinned)
    figure = outcome.plot()
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().replace("\n", " ") for axes in visible] == list(names)
    for i, axes in enumerate(visible):
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        labels = {"attribution", "random", "input agnostic", "mask only", "blurred"}
        # What masks tell is no difference, and in the table.
        assert set(lines) == (labels - {"mask only"} if metric == "diff_roar" else labels)
        assert np.allclose(lines["attribution"].get_ydata(), outcome.score[i])
        assert np.allclose(lines["blurred"].get_ydata(), outcome.control_score("blurred")[i])
        assert lines["attribution"].get_xdata().tolist() == [0.1, 0.25]
        assert len({line.get_color() for line in lines.values()}) == len(lines)
        (band,) = axes.collections
        low, high = outcome.intervals[i].unbind(-1)
        assert np.allclose(sorted(band.get_paths()[0].vertices[:, 1])[0], low.min())
        assert np.allclose(sorted(band.get_paths()[0].vertices[:, 1])[-1], high.max())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    labels = ["attribution", "random", "input agnostic", "mask only", "blurred"]
    assert legend == [name for name in labels if name != "mask only" or metric != "diff_roar"]
    assert visible[0].get_ylabel() == outcome.name
    assert visible[-1].get_xlabel() == ("fraction removed" if metric == "roar" else "fraction kept")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Nothing is drawn over anything else.
    renderer = canvas.get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in visible] + [figure.legends[0].get_window_extent(renderer)]
    for a, b in itertools.combinations(boxes, 2):
        assert min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)


def test_plot_without_controls_and_with_one_fraction():
    figure = result("kar", [GOOD], counts=(10,)).plot()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attribution"]
    assert math.isclose(figure.axes[0].lines[0].get_ydata()[0], 0.9, abs_tol=0.01)


def test_a_fraction_that_says_the_opposite_is_named():
    outcome = result("diff_roar", (GOOD, POOR), {})
    correct = outcome.correct.clone()
    correct[:, :, 0] = correct.flip(1)[:, :, 0]  # at the first fraction, low is better
    correct[:, 0, 1], correct[:, 1, 1] = True, False
    (line,) = replace(outcome, correct=correct).conclusions
    assert "ranks high predicts better" in line
    assert "other way round at single fractions: -0.400 [" in line and "with 0.1 kept" in line
    assert "other way round" not in outcome.conclusions[0]


def test_attributions_that_rank_by_position_are_named():
    outcome = result("diff_roar", (GOOD, POOR), {})
    (line,) = replace(outcome, constant=(0.5,)).conclusions
    assert "But 50.0% of its examples have the same attribution everywhere, and are ranked by position." in line
    assert "position" not in replace(outcome, constant=(0.0,)).conclusions[0]


def test_the_table_shows_both_accuracies_of_masks():
    outcome = result("diff_roar", (GOOD, POOR), {"mask_only": (0.8, 0.7)})
    (line,) = [line for line in outcome.table().splitlines() if line.startswith("| a, mask_only")]
    assert line.count("0.800 / 0.700") == 3
    assert "both accuracies" in outcome.table() and "both accuracies" in outcome._repr_html_()
    assert "both accuracies" not in result("kar", [GOOD], {"mask_only": [0.8]}).table()


def test_fractions_of_one_count_enter_the_mean_once():
    outcome = replace(result("kar", [GOOD], {}), counts=(2, 2))
    correct = outcome.correct.clone()
    correct[:, :, 1] = False
    assert replace(outcome, correct=correct).means()[0, 0].item() == pytest.approx(GOOD)
