"""Where activations sit: cell numbers pushed through moving operations are what the data says they are."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_density._linear.grids import area_matrix, linear_matrix, resize
from captum_density._linear.places import Place
from captum_density._linear.trace import Trace
from captum_density.attr import FullGrad, SimpleFullGrad


def places(model, x):
    """The place of every operation with a bias, by name, with the shape of its output."""
    trace = Trace()
    leaf = x.clone().requires_grad_()
    (tracked,) = trace.track((leaf,))
    with torch.enable_grad(), trace:
        model(tracked)
    return {operation.name: (operation.place, operation.output_shape) for operation in trace.operations}


def cells(place: Place, shape):
    return place.cells.expand(shape)


def partition(x, size):
    """(N, H, W, C) to windows (N * H/s * W/s, s * s, C), as Swin folds them."""
    n, h, w, c = x.shape
    x = x.view(n, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, size * size, c)


MOVES = {
    "roll": lambda x: torch.roll(x, (1, -2), (-1, 1)),
    "transpose": lambda x: x.transpose(-1, -2),
    "flip": lambda x: x.flip(1),
    "slice": lambda x: x[:, ::2],
    "drop last": lambda x: x[..., :-1] if x.size(-1) > 1 else x,
    "flatten": lambda x: x.flatten(1, 2) if x.ndim > 3 else x,
    "unsqueeze": lambda x: x.unsqueeze(1),
    "pad": lambda x: F.pad(x, (1, 0), value=-1.0),
    "class token": lambda x: torch.cat([torch.full_like(x[:, :1], -1.0).detach(), x], 1),
    "stack": lambda x: torch.stack([x, x], 1),
    "repeat": lambda x: x.repeat_interleave(2, 1),
    "chunk": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
    "index": lambda x: x[:, torch.arange(x.size(1) - 1, -1, -1)] if x.ndim > 1 else x,
    "select": lambda x: x[:, 0] if x.ndim > 3 else x,
    "movedim": lambda x: x.movedim(1, -1) if x.ndim > 1 else x,
    "fold into the batch": lambda x: x.contiguous().view(-1, *x.shape[2:]) if x.ndim > 2 else x,
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
}


@settings(max_examples=150)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=6), st.integers(1, 3), st.integers(2, 5), st.integers(2, 5))
def test_cells_follow_the_data(moves, channels, height, width):
    # The input holds the number of each pixel's own cell, so after any moves the data says which cell is where.
    x = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width).expand(2, channels, -1, -1).clone()
    moved = []

    def model(y):
        for name in moves:
            y = MOVES[name](y) if y.ndim > 2 else y
        moved.append(y.detach())
        return y.exp()

    place, shape = places(model, x)["exp"]
    if bool((moved[0] < 0).all()):
        assert place is None
        return
    assert torch.equal(cells(place, shape).double(), moved[0])
    assert place.partial == bool((moved[0] < 0).any())


def test_windows_of_a_shifted_map():
    # What windowed attention does: channels last, shift, fold windows into the batch.
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(3, 4, -1, -1).clone()
    moved = []

    def model(y):
        y = partition(torch.roll(y.permute(0, 2, 3, 1), (-2, -2), (1, 2)), 4)
        moved.append(y.detach())
        return nn.functional.linear(y, torch.eye(4), torch.ones(4)).sum((1, 2)).view(3, -1)

    place, shape = places(model, x)["linear"]
    assert shape == (12, 16, 4)
    assert torch.equal(cells(place, shape).float(), moved[0])
    full = FullGrad(model).decompose(x, 1)
    assert full.biases["linear"].shape == (3, 4, 16, 4)


def test_swin_terms_all_have_a_place_up_to_the_pooling():
    model = torchvision.models.swin_t(weights=None, num_classes=3).eval()
    found = places(model, torch.randn(1, 3, 64, 64))
    without = [name for name, (place, _) in found.items() if place is None]
    assert without == ["head:linear"]
    grids = {place.grid for place, _ in found.values() if place is not None}
    assert grids == {(16, 16), (8, 8), (4, 4), (2, 2)}


def test_vision_transformer_tokens():
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 16, 32, num_classes=3).eval()
    found = places(model, torch.randn(2, 3, 32, 32))
    place, shape = found["encoder.layers.encoder_layer_0.mlp.0:linear"]
    assert place.grid == (4, 4) and place.partial
    assert cells(place, shape)[0, :, 0].tolist() == [-1, *range(16)]
    assert found["heads.head:linear"][0] is None
    assert found["conv_proj:conv2d"][0].grid == (4, 4)


def unfolded(x):
    return F.unfold(x, 4, stride=4).transpose(1, 2)


def rearranged(x):
    n, c, h, w = x.shape
    return x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 16 * c)


@pytest.mark.parametrize("patches", [unfolded, rearranged])
def test_patches_without_a_convolution(patches):
    # The same tokens by unfold or by reshapes, then a dense layer: a grid of patches in row-major order.
    found = places(lambda x: F.linear(patches(x), torch.randn(5, 48), torch.ones(5)), torch.randn(2, 3, 8, 12))
    place, shape = found["linear"]
    assert place.grid == (2, 3)
    assert cells(place, shape)[0, :, 0].tolist() == list(range(6))


def test_a_dense_layer_over_all_positions_has_no_place():
    found = places(lambda x: F.linear(x.flatten(2), torch.randn(16, 16), torch.ones(16)), torch.randn(2, 3, 4, 4))
    assert found["linear"][0] is None


@pytest.mark.parametrize("order", ["channels_first", "embeddings"])
def test_three_dimensional_inputs_are_settled_by_the_model(order):
    if order == "channels_first":
        model = nn.Sequential(nn.Tanh(), nn.Conv1d(3, 4, 3, padding=1), nn.GELU())
        expected = {"0:tanh": (5,), "1:conv1d": (5,), "2:gelu": (5,)}
    else:
        model = nn.Sequential(nn.Tanh(), nn.Linear(5, 4), nn.GELU())
        expected = {"0:tanh": (3,), "1:linear": (3,), "2:gelu": (3,)}
    found = places(model, torch.randn(2, 3, 5))
    assert {name: place.final().grid for name, (place, _) in found.items()} == expected


def test_time_first_recurrence_keeps_the_tokens():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.GRU(4, 5)

        def forward(self, x):
            return self.recurrent(x.transpose(0, 1))[0][-1]

    model, x = Model(), torch.randn(3, 6, 4)
    place, shape = places(model, x)["recurrent:gru"]
    assert shape == (6, 3, 5)
    assert cells(place.final(), shape)[:, 0, 0].tolist() == list(range(6))


def test_as_many_steps_as_examples():
    # (L, N, E) with L = N and all terms zero: only the places tell positions from examples.
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.RNN(2, 3, nonlinearity="relu", bias=False)

        def forward(self, x):
            return self.recurrent(x.transpose(0, 1))[0].transpose(0, 1)[:, -1]

    model, x = Model(), torch.randn(3, 3, 2)
    together = SimpleFullGrad(model).attribute(x, 1)
    alone = [SimpleFullGrad(model).attribute(x[i : i + 1], 1) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_saliency_of_a_transformer_ignores_the_class_token_only():
    # A bias of one token shows at that token's patch and nowhere else.
    class Model(nn.Module):
        def forward(self, x):
            tokens = F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
            bias = torch.zeros(1, 5, 1)
            bias[0, 3] = 1.0
            tokens = torch.cat([torch.ones(len(x), 1, 1), tokens], 1) + bias
            return tokens.sum((1, 2)).unsqueeze(1)

    parts = FullGrad(Model(), complete=True).attribute(torch.zeros(1, 1, 4, 4), 0)
    expected = torch.full((1, 1, 4, 4), 1 / 16)  # the class token, everywhere
    expected[..., 2:, :2] += 0.25  # token 3 - 1 = 2 of a 2x2 grid
    torch.testing.assert_close(parts, expected)


class TestResize:
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
    def test_spreading_keeps_sums(self, h, w, height, width):
        values = torch.randn(3, h, w, dtype=torch.float64)
        spread = resize(values, (height, width), area_matrix)
        assert spread.shape == (3, height, width)
        torch.testing.assert_close(spread.sum((1, 2)), values.sum((1, 2)))

    def test_spreading_covers_the_right_positions(self):
        values = torch.tensor([[[1.0, 0.0]]])
        expected = torch.tensor([[[0.4, 0.4, 0.2, 0.0, 0.0]]])
        torch.testing.assert_close(resize(values, (1, 5), area_matrix), expected)

    @pytest.mark.parametrize(("mode", "rank"), [("linear", 1), ("bilinear", 2), ("trilinear", 3)])
    def test_interpolation_is_torchs(self, mode, rank):
        values = torch.randn(2, *(3, 1, 4)[:rank], dtype=torch.float64)
        size = (7, 5, 4)[:rank]
        expected = F.interpolate(values.unsqueeze(1), size=size, mode=mode, align_corners=True).squeeze(1)
        torch.testing.assert_close(resize(values, size, linear_matrix), expected)
