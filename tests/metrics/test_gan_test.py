"""The GAN-test: against the proxy called directly, in parts, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import GanTest, gan_test
from captum_density.samplers import Samples
from captum_density.testing import networks


@settings(max_examples=30)
@given(networks(), st.sampled_from([None, 1, 2, 100]))
def test_values_are_those_of_the_proxy(problem, batch):
    result = gan_test(problem.model, problem.inputs, problem.target, max_examples_per_batch=batch)
    assert isinstance(result, GanTest)
    with torch.no_grad():
        logits = torch.cat([problem.model(x[None]) for x in problem.inputs])
    classes = torch.as_tensor(problem.target).expand(len(logits))
    rows = torch.arange(len(logits))
    exponentials = (logits - logits.max(1, keepdim=True).values).exp()
    assert_close(result.probability, exponentials[rows, classes] / exponentials.sum(1))
    assert torch.equal(result.correct, torch.stack([row.argmax() for row in logits]) == classes)
    assert isinstance(result.accuracy, float)
    assert result.accuracy == pytest.approx(sum(result.correct.tolist()) / len(logits))


def test_accuracy_by_hand():
    proxy = lambda x: torch.stack([x, -x, torch.zeros_like(x)], 1)  # noqa: E731
    result = gan_test(proxy, torch.tensor([2.0, -1.0, 3.0, 0.5]), [0, 1, 2, 0])
    assert result.correct.tolist() == [True, True, False, True] and result.accuracy == 0.75
    e = math.e
    assert_close(result.probability[1].item(), e / (1 / e + e + 1))
    assert_close(result.probability[2].item(), 1 / (e**3 + e**-3 + 1))


@pytest.mark.parametrize("target", [1, [1], (1,), torch.tensor(1), torch.tensor([1]), [1, 1, 1]], ids=repr)
def test_targets_of_each_form(target):
    proxy, x = nn.Linear(4, 3), torch.randn(3, 4)
    assert torch.equal(gan_test(proxy, x, target).probability, gan_test(proxy, x, torch.tensor([1, 1, 1])).probability)


@pytest.mark.parametrize("integers", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_of_each_width(integers):
    proxy, x = nn.Linear(4, 3), torch.randn(3, 4)
    expected = gan_test(proxy, x, [0, 2, 1])
    assert torch.equal(gan_test(proxy, x, torch.tensor([0, 2, 1], dtype=integers)).probability, expected.probability)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6, 1000])
def test_chunks_take_their_rows_of_all_inputs_and_arguments(batch):
    x, y, weight = torch.randn(5, 2, 3), torch.randn(5, 4), torch.randn(5, 3)
    table, sizes = torch.randn(2, 3), []

    def proxy(x, y, weight, table, scalar, factor, nothing):
        sizes.append(len(x))
        assert len(x) == len(y) == len(weight) and table.shape == (2, 3) and scalar.ndim == 0 and nothing is None
        return (x.sum(1) + y[:, :3] * weight + table.sum(0)) * scalar * factor

    args = weight, table, torch.tensor(2.0), 3, None
    result = gan_test(proxy, (x, y), [0, 1, 2, 1, 0], args, max_examples_per_batch=batch)
    assert sizes == [min(batch, 5 - start) for start in range(0, 5, batch)]
    logits = proxy(x, y, *args)
    assert_close(result.probability, logits.softmax(1)[torch.arange(5), torch.tensor([0, 1, 2, 1, 0])])


def test_one_additional_argument_needs_no_tuple():
    x, weight = torch.randn(4, 3), torch.randn(4, 3)
    result = gan_test(lambda x, w: x * w, x, 2, weight, max_examples_per_batch=3)
    assert_close(result.probability, (x * weight).softmax(1)[:, 2])


@pytest.mark.parametrize("training", [True, False])
def test_a_proxy_in_training_mode_is_not_moved(training):
    proxy = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    proxy[1].running_mean.uniform_(-1, 1)
    proxy.train(training)
    proxy[0].weight.grad = torch.ones(5, 4)
    before = {name: value.clone() for name, value in proxy.state_dict().items()}
    x = torch.randn(6, 4, requires_grad=True)
    result = gan_test(proxy, x, 1)
    assert proxy.training == proxy[1].training == training
    assert all(torch.equal(before[name], value) for name, value in proxy.state_dict().items())
    assert x.grad is None and proxy[0].weight.grad.eq(1).all() and proxy[3].weight.grad is None
    assert_close(result.probability, proxy.eval()(x).softmax(1)[:, 1].detach())
    assert not result.probability.requires_grad


def test_within_autocast_and_inference_mode():
    proxy, x = nn.Linear(64, 3), torch.randn(6, 64)
    expected = gan_test(proxy, x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gan_test(proxy, x, 1).probability, expected.probability)
    with torch.inference_mode():
        assert torch.equal(gan_test(proxy, x.clone(), 1).probability, expected.probability)


def test_samples_are_not_written_to():
    x = torch.ones(3, 2)
    gan_test(lambda x: x.mul_(2), x, 0)
    assert x.eq(1).all()


def test_masked_classes_are_no_error():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    result = gan_test(lambda x: logits, torch.ones(1, 1), 1)
    assert result.probability.tolist() == [0] and result.correct.tolist() == [False]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"target": -1}, ValueError, "target must be a class.*-1"),
        ({"target": 3}, ValueError, "class 3, the classifier knows 3"),
        ({"target": [0, 1, 3]}, ValueError, "class 3, the classifier knows 3"),
        ({"target": [0, 1]}, ValueError, "each of 3 examples"),
        ({"target": 0.0}, ValueError, "as integers"),
        ({"target": None}, ValueError, "target must be"),
        ({"target": "cat"}, ValueError, "'cat'"),
        ({"target": [(0, 1)] * 3}, ValueError, "target must be"),
        ({"target": torch.ones(3)}, ValueError, "as integers"),
        ({"target": torch.ones(3, 1).int()}, ValueError, "target must be"),
        ({"target": []}, ValueError, "target must be"),
        ({"samples": torch.ones(0, 4)}, ValueError, "at least one example"),
        ({"samples": torch.ones(3, 4) * torch.nan}, ValueError, "NaN"),
        ({"samples": torch.ones(3, 4).int()}, TypeError, "int32"),
        ({"samples": [torch.ones(3, 4)]}, TypeError, "tuple of tensors, but is list"),
        ({"samples": (torch.ones(3, 4), torch.ones(2, 4))}, ValueError, "input 1 holds 2"),
        ({"samples": ()}, TypeError, "non-empty"),
        ({"proxy": "model"}, TypeError, "str"),
        ({"proxy": lambda x: x[:, 0]}, ValueError, r"logits \(3, C\), but returned \(3,\)"),
        ({"proxy": lambda x: x[:2]}, ValueError, r"logits \(3, C\), but returned \(2, 4\)"),
        ({"proxy": lambda x: x[..., None]}, ValueError, r"but returned \(3, 4, 1\)"),
        # All of NaN, the first class would be predicted, and be right.
        ({"proxy": lambda x: x * torch.nan}, ValueError, "NaN or infinite logits"),
        ({"proxy": lambda x: x * torch.inf}, ValueError, "NaN or infinite logits"),
        ({"max_examples_per_batch": 0}, ValueError, "at least 1, but is 0"),
    ],
)
def test_what_is_refused(change, error, words):
    arguments = {"proxy": nn.Linear(4, 3), "samples": torch.ones(3, 4), "target": 0, **change}
    with pytest.raises(error, match=words):
        gan_test(**arguments)


def test_random_classifiers_are_refused():
    proxy = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"draws random numbers .*model\.eval"):
        gan_test(proxy, torch.ones(2, 4), 0)
    assert torch.equal(torch.get_rng_state(), before)
    gan_test(proxy.eval(), torch.ones(2, 4), 0)


def test_one_output_is_no_classifier():
    with pytest.raises(ValueError, match="the classifier has one output"):
        gan_test(nn.Linear(4, 1), torch.ones(2, 4), 0)


def test_takes_what_a_sampler_returned():
    x = torch.randn(5, 4)
    assert gan_test(nn.Linear(4, 3), Samples(x, torch.ones(5)), 0).correct.shape == (5,)
