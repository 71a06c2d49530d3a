"""A model on a batch: rows of everything a call takes, the form of the inputs, and what has to hold as it runs."""

import pytest
import torch
from captum.attr import Saliency
from torch import nn
from torch.testing import assert_close

from captum_density._model.batch import ModelOnBatch
from captum_density._model.copies import ModelOnCopies
from captum_density.attr import FullGrad, PathIntegratedGradients
from captum_density.density import class_score
from captum_density.retraining import pgd
from captum_density.samplers import LangevinSampler

A, B = torch.randn(3, 4), torch.randn(3, 2)
MASK, SCALE = torch.rand(3, 4), torch.rand(4)


def model(a, b, mask, scale, power):
    return torch.stack([(a * mask * scale).pow(power).sum(1), b.sum(1)], 1)


def batch(**options):
    return ModelOnBatch(model, (A, B), [0, 1, 0], (MASK, SCALE, 3), **options)


@pytest.mark.parametrize("rows", [torch.tensor([2, 0, 0]), torch.tensor([1]), slice(1, 3)])
def test_rows_of_everything(rows):
    own = batch()
    outputs = model(A, B, MASK, SCALE, 3)
    assert_close(own.run(rows=rows), outputs[rows])
    expected = outputs[torch.arange(3), torch.tensor([0, 1, 0])][rows]
    assert_close(own.selected(rows=rows), expected)
    assert_close(own.at(rows).selected(), expected)
    versions = tuple(2 * x for x in own.inputs_of(rows))
    assert_close(own.selected(versions, rows), model(2 * A, 2 * B, MASK, SCALE, 3)[torch.arange(3), [0, 1, 0]][rows])
    assert own.at(rows).n == len(A[rows])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (1, 1),
        ((0, 1), (0, 1)),
        (torch.tensor(2), torch.tensor(2)),
        (torch.tensor([2]), torch.tensor([2])),
        (torch.tensor([0, 1, 2]), torch.tensor([2, 0])),
        ([0, 1, 2], [2, 0]),
        ([(0, 1), (1, 1), (2, 1)], [(2, 1), (0, 1)]),
        (None, None),
    ],
)
def test_every_form_of_a_target(target, expected):
    own = ModelOnBatch(model, A, target)
    rows = own.target_of(torch.tensor([2, 0]))
    assert torch.equal(rows, expected) if isinstance(expected, torch.Tensor) else rows == expected


@pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1]), [0] * 6])
def test_a_target_of_other_examples(target):
    own = ModelOnCopies(lambda x: x, A, target)
    with pytest.raises(AssertionError, match="one for each of 3 examples"):
        own.target_of(torch.arange(3).repeat(2))


def test_form_and_parts():
    assert batch().in_form((1, 2)) == (1, 2) and ModelOnBatch(model, A).in_form((1,)) == 1
    assert [*batch(max_examples_per_batch=2).parts()] == [slice(0, 2), slice(2, 3)]
    assert [*batch().parts(7)] == [slice(0, 7)]
    assert [*batch().parts(7, unlimited=3)] == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_within_an_evaluation_nothing_depends_on_the_batch_and_after_it_nothing_lasts():
    norm = nn.BatchNorm1d(4)
    mean, own = norm.running_mean.clone(), ModelOnBatch(norm, A)
    with torch.autocast("cpu"), own.evaluation():
        assert not torch.is_autocast_enabled("cpu")
        assert_close(own.run(rows=slice(1)), own.run()[:1])
    assert norm.training and torch.equal(norm.running_mean, mean)
    with pytest.raises(KeyError), own.evaluation():
        raise KeyError
    assert norm.training


@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_on_or_off_as_before_and_inference_mode_is_left(enabled):
    own = batch()
    with torch.set_grad_enabled(enabled), own.evaluation():
        assert torch.is_grad_enabled() == enabled
    with torch.inference_mode(), own.evaluation():
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()


def test_random_numbers_are_refused_where_values_are_compared():
    own = ModelOnBatch(nn.Dropout(), A)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"), own.evaluation(comparison=True):
        own.run()
    assert torch.equal(torch.get_rng_state(), state)
    with own.evaluation():
        own.run()
    own.run()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((nn.Linear, A), {}, TypeError, "the judge must be .* make an object of it"),
        ((Saliency(model), A), {}, TypeError, "pass the model that it explains"),
        ((model, [A]), {}, TypeError, "a non-empty tuple of tensors, but is list"),
        ((model, (A, B[:2])), {}, ValueError, "input 1 holds 2 examples, input 0 holds 3"),
        ((model, A.long()), {}, TypeError, "convert images to float"),
        ((model, A), {"max_examples_per_batch": 0}, ValueError, "at least 1"),
    ],
)
def test_what_is_refused(arguments, options, error, words):
    with pytest.raises(error, match=words):
        ModelOnBatch(*arguments, name="the judge", **options)


def test_token_ids_need_no_gradient():
    ids = torch.tensor([[1, 2], [0, 3]])
    own = ModelOnBatch(nn.Embedding(4, 5), ids, differentiable=False)
    assert own.run(rows=torch.tensor([1])).shape == (1, 2, 5)


def test_what_is_not_differentiated_may_be_infinite_or_one_for_all():
    ids, places = torch.tensor([[1, 2], [0, 3]]), torch.tensor([[0, 1]])
    mask = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    own = ModelOnBatch(lambda *xs: xs, (ids, places, mask), differentiable=False)
    assert own.n == 2
    assert all(map(torch.equal, own.run(rows=torch.tensor([1, 1, 0])), (ids[[1, 1, 0]], places, mask[[1, 1, 0]])))
    with pytest.raises(ValueError, match="at least one example"):
        ModelOnBatch(lambda *xs: xs, (ids, places[:0]), differentiable=False)


def test_copies_take_the_arguments_of_their_examples():
    own = ModelOnCopies(model, (A, B), None, (MASK, SCALE, 3))
    points = own.displaced(tuple(torch.randn(2, *x.shape) for x in (A, B)))
    outputs = own.outputs(points)
    for copy, *inputs in zip(outputs, *points, strict=True):
        assert_close(copy, model(*inputs, MASK, SCALE, 3))


@pytest.mark.cuda
@pytest.mark.parametrize("target", [[0, 3], [-4, 0]])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, x, y: FullGrad(model).attribute(x, y),
        lambda model, x, y: PathIntegratedGradients(model).attribute(x, target=y),
        lambda model, x, y: class_score(model, x, y),
        lambda model, x, y: LangevinSampler(model, 0.1, 2).sample(x, y),
        lambda model, x, y: pgd(model, x, y, norm="linf", radius=0.1),
    ],
)
def test_classes_that_there_are_not_are_refused_before_a_gpu_meets_them(call, target):
    """There, an index out of range ends the process's use of the GPU."""
    model, x, y = nn.Linear(4, 3).cuda(), torch.rand(2, 4).cuda(), torch.tensor(target).cuda()
    for given in (y, target):
        with pytest.raises((RuntimeError, ValueError), match=r"from (0 to 3|-4 to 0)|has 3 classes|a class, or one"):
            call(model, x, given)
    assert torch.equal(y.cpu(), torch.tensor(target))  # the GPU is still there


@pytest.mark.cuda
def test_numbers_that_are_looked_at_late_are_refused_all_the_same():
    model, x = nn.Linear(4, 3).cuda(), torch.rand(2, 4).cuda()
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="input 0 contains NaN"):
        FullGrad(model).attribute(x, 0)


# (N, N): a row for each example, or a mask from N positions to N.

L = 3


def attending(x, attention=None, padding=None):
    """Embeddings (N, L, 4), a mask (L, L) of queries and keys, and one (N, L) of positions."""
    scores = x @ x.mT
    for mask in (attention, None if padding is None else padding[:, None]):
        scores = scores if mask is None else scores.masked_fill(~mask, -1e9)
    return (scores.softmax(-1) @ x).sum(1)


SEQUENCES = torch.randn(L, L, 4, dtype=torch.float64)
LOWER = torch.ones(L, L, dtype=torch.bool).tril()  # as a padding mask: lengths of 1, 2 and 3
FEW = torch.tensor([0, 2])


@pytest.mark.parametrize("args", [(LOWER,), (None, LOWER), (LOWER, LOWER.flip(0)), (LOWER.flip(1), LOWER)])
@pytest.mark.parametrize("rows", [FEW, slice(1, 3), torch.tensor([2]), torch.arange(L).repeat(2)])
def test_square_masks_are_told_from_rows(args, rows):
    whole = attending(SEQUENCES, *args)
    own = ModelOnBatch(attending, SEQUENCES, 1, args)
    assert_close(own.run(rows=rows), whole[rows])
    part = own.at(rows)
    assert_close(part.run(), whole[rows])
    assert_close(part.at(slice(0, 1)).run(), whole[rows][:1])  # also of as many as a mask has rows


def test_a_square_mask_in_the_methods():
    paths = PathIntegratedGradients(attending)
    expected = torch.cat([paths.attribute(x[None], None, 1, LOWER, n_steps=5) for x in SEQUENCES])
    assert_close(paths.attribute(SEQUENCES, None, 1, LOWER, n_steps=5), expected)


def test_square_arguments_that_cannot_be_told_are_refused():
    before = torch.get_rng_state()
    noisy = ModelOnBatch(lambda x, mask: attending(x, mask) + torch.rand(len(x), 4), SEQUENCES, 1, LOWER)
    with pytest.raises(ValueError, match=r"lambda x: model\(x, mask\)"):
        noisy.run(rows=FEW)
    assert torch.equal(torch.get_rng_state(), before)
    assert noisy.run().shape == (L, 4)  # of all, nothing has to be told
