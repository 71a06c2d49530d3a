"""One attribution function out of a class, an attribution, its method or a function: of its own model, or of any."""

from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import (
    LRP,
    DeepLift,
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    LayerGradCam,
    LayerIntegratedGradients,
    NoiseTunnel,
    Saliency,
    ShapleyValueSampling,
)
from torch import nn
from torch.testing import assert_close

from captum_density._model.attribution import attribute_function, attribution_maker, attribution_of
from captum_density.attr import FullGrad, PathIntegratedGradients, SmoothFullGrad

X = torch.rand(2, 1, 6, 6)


class Network(nn.Module):
    """Without a module that flattens, for which LRP has no rule."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.convolution, self.relu, self.linear = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Linear(48, 3)

    def forward(self, x):
        return self.linear(self.relu(self.convolution(x)).flatten(1))


OWN, OTHER = Network(0), Network(1)


def values(attribute, **options):
    torch.manual_seed(0)
    np.random.seed(0)  # which GradientShap draws from
    return attribute(X.clone().requires_grad_(), target=1, **options)


# Each as users write it for one model; `LayerGradCam` and others that hold a layer are below.
MADE = {
    **{
        method.__name__: method
        for method in (Saliency, IntegratedGradients, InputXGradient, DeepLift, GuidedBackprop, LRP, FeatureAblation)
    },
    **{method.__name__: method for method in (FullGrad, SmoothFullGrad, PathIntegratedGradients)},
    "KernelShap": lambda model: partial(KernelShap(model).attribute, n_samples=5),
    "ShapleyValueSampling": lambda model: partial(ShapleyValueSampling(model).attribute, n_samples=1),
    "GradientShap": lambda model: partial(GradientShap(model).attribute, baselines=torch.zeros(1, 1, 6, 6)),
    "NoiseTunnel": lambda model: NoiseTunnel(Saliency(model)),
    "method": lambda model: Saliency(model).attribute,
    "nested partial": lambda model: partial(partial(Saliency(model).attribute, abs=True), abs=False),
    "of a method": lambda model: Saliency(model.forward),
}


@pytest.mark.filterwarnings("ignore:Setting", "ignore:You are providing multiple")
@pytest.mark.parametrize("name", MADE)
def test_made_for_one_model_it_is_made_anew_for_another(name):
    own = MADE[name](OWN)
    method = OTHER.forward if name == "of a method" else OTHER
    make = attribution_maker(own, "method")
    expected = [values(attribute_function(MADE[name](model), "method")) for model in (OWN, OTHER)]
    assert not torch.equal(*expected)
    other = make(method)
    assert attribution_of(other).forward_func == method and attribution_of(own).forward_func != method
    assert_close(values(attribute_function(other, "method")), expected[1])
    assert_close(values(attribute_function(own, "method")), expected[0])  # left as it was


def test_of_its_own_model_nothing_is_made():
    own = Saliency(OWN)
    assert attribution_maker(own, "method", model=OWN)(OWN) is own


def test_lists_are_not_shared():
    own = DeepLift(OWN)
    other = attribution_maker(own, "method")(OTHER)
    other.forward_handles.append(None)
    assert own.forward_handles == []


@pytest.mark.parametrize("options", [{}, {"abs": False}])
@pytest.mark.parametrize("make", [Saliency, lambda model: Saliency(model), lambda model: Saliency(model).attribute])
def test_functions_of_a_model_are_called_for_it(make, options):
    attribute = attribute_function(attribution_maker(make, "method")(OTHER), "method")
    assert_close(values(attribute, **options), values(Saliency(OTHER).attribute, **options))


def test_a_class_with_options_is_a_function_of_a_model():
    make = attribution_maker(partial(IntegratedGradients, multiply_by_inputs=False), "method")
    assert make(OTHER).forward_func is OTHER and not make(OTHER).multiplies_by_inputs


HOLDERS = {
    "LayerGradCam": lambda model: LayerGradCam(model, model.convolution),
    "GuidedGradCam": lambda model: GuidedGradCam(model, model.convolution),
    "LayerIntegratedGradients": lambda model: LayerIntegratedGradients(model, model.convolution),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_holds_a_layer_is_made_anew_for_models_that_have_it(name):
    own = HOLDERS[name](OWN)
    with pytest.raises(TypeError, match=r"function of the model, such as `lambda model: \w+\(model, ..."):
        attribution_maker(own, "method")(OTHER)
    around = nn.Sequential(OWN, nn.Identity())
    assert attribution_maker(own, "method")(around).forward_func is around


def test_what_a_run_left_of_its_own_model_is_refused():
    own = LRP(OWN)
    values(own.attribute)
    with pytest.raises(TypeError, match=r"function of the model, such as `lambda model: LRP\(model"):
        attribution_maker(own, "method")(OTHER)


def test_attributions_within_of_another_model_are_refused():
    own = NoiseTunnel(Saliency(OWN))
    own.attribution_method = Saliency(lambda x: OWN(x))
    with pytest.raises(TypeError, match="pass a function of the model"):
        attribution_maker(own, "method")(OTHER)


@pytest.mark.parametrize("method", [OWN, OWN.forward, "Saliency", None, (torch.ones(2), torch.ones(2))])
def test_no_method(method):
    with pytest.raises(TypeError, match=r"^method must be .*; pass a function of the model, such as Saliency"):
        attribution_maker(method, "method")


@pytest.mark.parametrize("attributor", [OWN, "Saliency", None])
def test_no_attributor(attributor):
    with pytest.raises(TypeError, match=r"^attributions must be .*; pass such as `Saliency\(model\)`, or a function"):
        attribute_function(attributor, "attributions")


@pytest.mark.parametrize("attributor", [Saliency, partial(IntegratedGradients, multiply_by_inputs=False)])
def test_a_class_is_made_for_no_model_yet(attributor):
    with pytest.raises(TypeError, match=r"make it for a model first, as `(Saliency|IntegratedGradients)\(model\)`"):
        attribute_function(attributor, "attributions")


def test_of_a_view_is_refused_where_the_model_is_named():
    make = partial(attribution_maker, Saliency(nn.Sequential(OWN, nn.Softmax(1))), "method")
    assert make()(OTHER).forward_func is OTHER
    with pytest.raises(ValueError, match="pass a function of the model"):
        make(model=OWN)


def test_a_function_that_returns_no_attribution():
    with pytest.raises(TypeError, match=r"`Saliency\(model\).attribute`, but returned an object of class str"):
        attribution_maker(lambda model: "a map", "method")(OWN)


def test_the_attribution_behind_a_function():
    own = Saliency(OWN)
    assert attribution_of(own) is own
    assert attribution_of(partial(partial(own.attribute, abs=False))) is own
    assert attribution_of(lambda x: own.attribute(x)) is attribution_of(Saliency) is attribution_of(OWN) is None
