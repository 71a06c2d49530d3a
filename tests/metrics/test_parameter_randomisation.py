import copy

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from scipy.stats import entropy, spearmanr
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import parameter_randomisation

torch.manual_seed(0)
NET = nn.Sequential(
    nn.Linear(40, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
).eval()
X = torch.randn(6, 40)


def test_what_ignores_the_model_stays_as_it_is():
    result = parameter_randomisation(lambda model: lambda x, **_: x**2, NET, X, 0)
    assert_close(result.similarity, torch.ones_like(result.similarity))
    assert (result.complexity_rise == 0).all()


def test_gradients_change_and_the_model_does_not():
    before = copy.deepcopy(NET.state_dict())
    result = parameter_randomisation(Saliency, NET, X, 0)
    assert result.layers.tolist() == [1, 2, 3, 4]
    assert (result.similarity < 0.9).all()
    assert_close(NET.state_dict(), before)
    assert_close(parameter_randomisation(Saliency(NET), NET, X, 0).similarity, result.similarity)
    assert parameter_randomisation(Saliency, NET, X, 0, n_depths=2).layers.tolist() == [2, 4]
    assert_close(parameter_randomisation(Saliency, NET, X, 0, n_depths=1).similarity, result.similarity[-1:])


def test_one_layer_alone():
    """The last layer alone is the last layer of all; the first alone leaves the others as they are."""
    cascading = parameter_randomisation(Saliency, NET, X, 0)
    alone = parameter_randomisation(Saliency, NET, X, 0, order="independent")
    assert_close(alone.similarity[0], cascading.similarity[0])
    assert not torch.equal(alone.similarity[1:], cascading.similarity[1:])
    assert_close(alone.complexity_rise, cascading.complexity_rise)


def test_similarity_is_that_of_the_changed_model():
    """Of a linear model whose new weights are seen: SciPy's rank correlation, and the entropy of NumPy's histogram.

    As Quantus 0.6 has them, `EfficientMPRT` by `discrete_entropy`.
    """
    model, seen = nn.Linear(40, 3), []

    def make(model):
        def attribute(x, target):
            seen.append(x * model.weight[target])
            return seen[-1]

        return attribute

    result = parameter_randomisation(make, model, X, 1, signed=True)
    own, drawn = (values.detach() for values in seen)
    want = [spearmanr(a, b).statistic for a, b in zip(own, drawn, strict=True)]
    assert result.similarity[0].tolist() == pytest.approx(want)
    unsigned = parameter_randomisation(make, model, X, 1)
    want = [spearmanr(a.abs(), b.abs()).statistic for a, b in zip(own, drawn, strict=True)]
    assert unsigned.similarity[0].tolist() == pytest.approx(want)

    def entropy_of_histogram(values):
        return entropy(np.histogram(values.double().numpy(), bins=100)[0])

    before, after = ([entropy_of_histogram(a) for a in maps] for maps in (own, drawn))
    rise = [(b - a) / a for a, b in zip(before, after, strict=True)]
    assert result.complexity_rise.tolist() == unsigned.complexity_rise.tolist() == pytest.approx(rise, rel=1e-9)


def test_complexity_that_rises_from_nothing():
    model = nn.Linear(40, 3)
    weight = model.weight

    def make(model):
        return lambda x, **_: torch.ones_like(x) if model.weight is weight else x

    assert parameter_randomisation(make, model, X).complexity_rise.isposinf().all()


def test_options_and_several_inputs_reach_the_method():
    def model(a, b):
        return NET(a + b)

    two = parameter_randomisation(IntegratedGradients, model, (X, X), 0, n_steps=5)
    assert two.similarity.shape == (4, 6)
    with pytest.raises(ValueError, match="no weights"):
        parameter_randomisation(InputXGradient, lambda x: x, X, 0)
    with pytest.raises(ValueError, match="cascading"):
        parameter_randomisation(Saliency, NET, X, 0, order="all")
    with pytest.raises(ValueError, match="n_depths"):
        parameter_randomisation(Saliency, NET, X, 0, n_depths=0)


def test_batch_norm_stays_as_it_is():
    net = copy.deepcopy(NET).train()
    before = copy.deepcopy(net.state_dict())
    parameter_randomisation(Saliency, net, X, 0)
    assert_close(net.state_dict(), before)
    assert net.training


@pytest.mark.cuda
def test_on_a_gpu():
    net, x = copy.deepcopy(NET).to("cuda"), X.to("cuda")
    result = parameter_randomisation(Saliency, net, x, 0)
    assert result.similarity.is_cuda
    assert (result.similarity < 0.9).all()
