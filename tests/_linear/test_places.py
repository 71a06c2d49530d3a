"""Where activations lie: as the data itself says, as in the usual layout, and on inputs that they depend on."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_density._linear.grids import Cells, area_matrix, linear_matrix, resize
from captum_density._linear.places import Place
from captum_density._linear.trace import Trace
from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
from captum_density.rules import BalancedGradients


def traced(model, x):
    """The trace of a model, with its positions and the place of every operation that has a bias."""
    trace = Trace()
    leaf = x.clone().requires_grad_()
    (tracked,) = trace.track((leaf,))
    with torch.enable_grad(), trace:
        model(tracked)
    return trace


def places(model, x):
    """The place of every operation with a bias, by name, with the shape of its output."""
    return {operation.name: (operation.place, operation.output_shape) for operation in traced(model, x).operations}


def intervals(place: Place, shape, dim):
    """(lo, hi) of every element along a dimension of the input; nan where it is constant."""
    (axis,) = place.axes[0, dim]
    bounds = torch.cat([torch.full((1, 2), float("nan"), dtype=torch.float64), axis.cells.bounds])
    both = bounds[(axis.codes.long() + 1).expand(shape)]
    return both[..., 0], both[..., 1]


def cells(place: Place, shape, dim):
    """The first position of every element along a dimension, -1 where it is constant."""
    return intervals(place, shape, dim)[0].nan_to_num(nan=-1.0)


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=6), st.integers(2, 3), st.integers(2, 5), st.integers(2, 5))
def test_places_follow_the_data(moves, channels, height, width):
    # The input holds each element's own numbers, so after any moves the data says which element is where.
    x = torch.arange(2 * channels * height * width, dtype=torch.float64).view(2, channels, height, width)
    moved = []

    def model(y):
        for name in moves:
            y = MOVES[name](y) if y.ndim > 2 else y
        moved.append(y.detach())
        return y.exp()

    place, shape = places(model, x)["exp"]
    (numbers,), constant = moved, moved[0] < 0
    for dim, size in reversed(list(enumerate(x.shape))):
        expected = (numbers % size).masked_fill(constant, -1)
        # Constants may lie where all their neighbours do, as a class token does in its example.
        found = cells(place, shape, dim)
        assert torch.equal(found.masked_fill(constant, -1), expected)
        numbers = numbers.div(size, rounding_mode="floor")
    assert place.everywhere or bool(constant.any())


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
    assert torch.equal(8 * cells(place, shape, 2) + cells(place, shape, 3), moved[0].double())
    assert torch.equal(cells(place, shape, 0)[:, 0, 0], torch.arange(3.0).repeat_interleave(4).double())
    full = FullGrad(model).decompose(x, 1)
    assert full.biases["linear"].shape == (3, 4, 16, 4)


def test_swin_terms_all_have_a_place_up_to_the_pooling():
    model = torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=3).eval()
    found = places(model, torch.randn(1, 3, 64, 64))
    assert [name for name, (place, _) in found.items() if not place.telling] == ["head:linear"]
    grids = {len(place.axes[0, 2][0].cells) for place, _ in found.values() if place.telling}
    assert grids == {16, 8}


def test_vision_transformer_tokens():
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 16, 32, num_classes=3).eval()
    found = places(model, torch.randn(2, 3, 32, 32))
    place, shape = found["encoder.layers.encoder_layer_0.mlp.0:linear"]
    assert cells(place, shape, 2)[0, :, 0].tolist() == [-1, *(8 * (i // 4) for i in range(16))]
    assert cells(place, shape, 3)[1, :, 0].tolist() == [-1, *(8 * (i % 4) for i in range(16))]
    assert not place.everywhere
    assert not found["heads.head:linear"][0].telling
    nn.init.normal_(model.heads.head.weight)
    full = FullGrad(model).decompose(torch.randn(2, 3, 32, 32), 1)
    assert ((full.unplaced_share() > 0.05) & (full.unplaced_share() < full.leak())).all()


def unfolded(x):
    return F.unfold(x, 4, stride=4).transpose(1, 2)


def rearranged(x):
    n, c, h, w = x.shape
    return x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 16 * c)


@pytest.mark.parametrize("patches", [unfolded, rearranged])
def test_patches_without_a_convolution(patches):
    # The same tokens by unfold or by reshapes, then a dense layer, lie where those of a convolution do.
    embed = nn.Conv2d(3, 5, 4, stride=4)
    weight = embed.weight.flatten(1) if patches is unfolded else embed.weight.permute(0, 2, 3, 1).flatten(1)
    x, tokens = torch.randn(2, 3, 8, 12), torch.randn(6, 5)

    def by_hand(x):
        return (F.linear(patches(x), weight, embed.bias).tanh() * tokens).sum((1, 2))

    def usual(x):
        return (embed(x).flatten(2).transpose(1, 2).tanh() * tokens).sum((1, 2))

    for complete in (True, False):
        maps = [FullGrad(f, complete=complete).attribute(x) for f in (by_hand, usual)]
        torch.testing.assert_close(*maps)


def test_a_dense_layer_over_all_positions_has_no_place():
    found = places(lambda x: F.linear(x.flatten(2), torch.randn(16, 16), torch.ones(16)), torch.randn(2, 3, 4, 4))
    assert found["linear"][0].telling == {(0, 1)}


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (nn.Sequential(nn.Tanh(), nn.Conv1d(6, 4, 3, padding=1), nn.GELU()), (2,)),
        (nn.Sequential(nn.LayerNorm(5), nn.Conv1d(6, 4, 3, padding=1)), (2,)),
        (nn.Sequential(nn.Tanh(), nn.Linear(5, 4), nn.GELU()), (1,)),
        (nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(60, 2)), (1, 2)),
        (nn.Sequential(nn.Flatten(), nn.Linear(30, 4)), (1, 2)),
    ],
    ids=["signal", "signal after a norm over time", "embeddings", "image without channels", "flattened"],
)
def test_channels_are_what_the_first_weights_collapse(model, positions):
    assert traced(model, torch.randn(2, 6, 5)).positions.of_all() == (positions,)


def small_net():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, 2, 1)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)),
    ).eval()


def usual_signal():
    return nn.Sequential(
        *(nn.Conv1d(1, 4, 3, padding=1), nn.GELU(), nn.Conv1d(4, 4, 2, stride=2), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(24, 2)),
    )


IMAGES = {  # from (N, 3, H, W) to another layout, and back inside the model
    "channels last": (lambda x: x.movedim(1, 3), lambda x: x.permute(0, 3, 1, 2)),
    "width first": (lambda x: x.transpose(2, 3), lambda x: x.mT),
    "flat": (lambda x: x.flatten(1), lambda x: x.view(-1, 3, 6, 8)),
    "flat and channels last": (lambda x: x.movedim(1, 3).flatten(1),
                               lambda x: x.reshape(-1, 6, 8, 3).movedim(-1, 1)),
    "tokens": (lambda x: x.flatten(2).mT, lambda x: x.transpose(1, 2).unflatten(2, (6, 8))),
    "a frame": (lambda x: x.unsqueeze(1), lambda x: x.flatten(0, 1)),
    "a squeezed frame": (lambda x: x.unsqueeze(2), lambda x: x.squeeze(2)),
    "flipped": (lambda x: x.flip(3), lambda x: torch.flip(x, (3,))),
    "rolled": (lambda x: x.roll(4, 3), lambda x: torch.roll(x, -4, 3)),
    "columns apart": (lambda x: x, lambda x: torch.stack(x.unbind(3), 3)),
}  # fmt: skip


def same_maps(model, x, there, back, **settings):
    """The map of a model fed in another layout is that of the usual one, in that layout."""
    for method in (FullGrad, SimpleFullGrad):
        for complete in ({"complete": True}, {}) if method is FullGrad else ({},):
            usual = method(model, **complete).attribute(x, 1)
            other = method(lambda y: model(back(y)), **complete, **settings).attribute(there(x).contiguous(), 1)
            torch.testing.assert_close(other, there(usual), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", IMAGES)
def test_an_image_in_any_layout_has_the_same_map(layout):
    torch.manual_seed(0)
    there, back = IMAGES[layout]
    x = torch.randn(2, 3, 6, 8)
    if layout == "rolled":  # interpolation does not see that the two edges belong together
        model = small_net()
        usual = FullGrad(model, complete=True).attribute(x, 1)
        other = FullGrad(lambda y: model(back(y)), complete=True).attribute(there(x), 1)
        torch.testing.assert_close(back(other), usual, rtol=1e-4, atol=1e-5)
    elif "flat" in layout:  # all of its dimension is positions, so channels are told apart: their sums are the same
        model = small_net()
        usual = FullGrad(model, complete=True).attribute(x, 1)
        other = FullGrad(lambda y: model(back(y)), complete=True).attribute(there(x), 1)
        torch.testing.assert_close(back(other).sum(1), usual.sum(1), rtol=1e-4, atol=1e-5)
    else:
        same_maps(small_net(), x, there, back)


class PadFirst(nn.Conv2d):
    """A convolution whose zeros are laid around its input beforehand."""

    def forward(self, x):
        columns, rows = self.padding[1], self.padding[0]
        return F.conv2d(F.pad(x, (columns, columns, rows, rows)), self.weight, self.bias, self.stride)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (3, 2), (5, 2), (4, 3)])
@pytest.mark.parametrize("complete", [True, False])
def test_zeros_laid_around_are_as_the_convolutions_own(kernel, stride, complete):
    def network(convolution):
        layers = (convolution(c, 3, kernel, stride, kernel // 2) for c in (1, 3))
        return nn.Sequential(*(part for layer in layers for part in (layer, nn.SiLU())), nn.Flatten(), Sums())

    own, before = network(nn.Conv2d), network(PadFirst)
    before.load_state_dict(own.state_dict())
    x = torch.randn(2, 1, 12, 12)
    maps = [FullGrad(model, complete=complete).attribute(x) for model in (own, before)]
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5)


class Sums(nn.Module):
    def forward(self, x):
        return x.sin().sum(1)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_copies_around_an_image_leave_the_windows_where_they_are(mode):
    def network(mode):
        layers = [nn.Conv2d(c, 3, 3, 2, 1, padding_mode=mode) for c in (1, 3)]
        return nn.Sequential(layers[0], nn.SiLU(), layers[1])

    x = torch.randn(2, 1, 12, 12)
    (_, _), (first, shape), *_ = places(network("zeros"), x).values()
    ours = [each for each in places(network(mode), x).values() if each[1] == shape]
    assert ours
    for place, _ in ours:
        for dim in (2, 3):
            torch.testing.assert_close(intervals(place, shape, dim), intervals(first, shape, dim))


def test_padding_on_one_side_as_tensorflow_has_it_leaves_even_cells():
    network = nn.Sequential(
        *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 2, 3, 2), nn.SiLU()),
        *(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(2, 2, 5, 2)),
    )
    for place, shape in places(network, torch.randn(1, 1, 32, 32)).values():
        lo = torch.arange(shape[3], dtype=torch.float64) * (32 / shape[3])
        for dim in (2, 3):
            for edge, ours in zip((lo, lo + 32 / shape[3]), intervals(place, shape, dim), strict=True):
                assert torch.equal(ours.transpose(dim, 3)[0, 0, 0], edge)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (lambda x: x.squeeze(1), lambda x: x.unsqueeze(1)),
        (lambda x: x.mT, lambda x: x.transpose(1, 2)),
        (lambda x: x.unsqueeze(2), lambda x: x[:, :, 0]),
    ],
    ids=["without channels", "channels last", "a row"],
)
def test_a_signal_in_any_layout_has_the_same_map(there, back):
    torch.manual_seed(0)
    same_maps(usual_signal(), torch.randn(2, 1, 12), there, back)


SWAPS = [(1, 2), (1, 3), (2, 3), (1, 4), (3, 4)]
NEW_DIMENSIONS = (1, 2, 3, 4)


def there_and_back(x, steps):
    """x in another layout, by steps that a drawn number chooses, and the function that undoes them.

    Rows and columns may become one dimension where they stand side by side; they are told by their sizes, 6 and 8.
    """
    undo = []
    for kind, number in steps:
        if kind == "transpose":
            i, j = SWAPS[number % len(SWAPS)]
            if max(i, j) < x.ndim:
                x, back = x.transpose(i, j), lambda y, i=i, j=j: y.transpose(i, j)
                undo.append(back)
        elif kind == "movedim":
            i, j = 1 + number % (x.ndim - 1), x.ndim - 1
            x = x.movedim(i, j)
            undo.append(lambda y, i=i, j=j: torch.movedim(y, j, i))
        elif kind == "unsqueeze" and x.ndim < 5:
            d = 1 + number % x.ndim
            x = x.unsqueeze(d)
            undo.append(lambda y, d=d: y.squeeze(d))
        elif kind == "flatten":
            pairs = [d for d in range(1, x.ndim - 1) if {x.size(d), x.size(d + 1)} == {6, 8}]
            if pairs:
                (d,), sizes = pairs, x.shape[pairs[0] : pairs[0] + 2]
                x = x.flatten(d, d + 1)
                undo.append(lambda y, d=d, sizes=sizes: y.unflatten(d, sizes))
            elif 48 in x.shape:
                d = x.shape.index(48)
                x = x.unflatten(d, (6, 8)) if number % 2 and not undo else x
    return x.contiguous(), lambda y: functools.reduce(lambda y, back: back(y), reversed(undo), y)


DETOURS = {
    "none": lambda x: x,
    "unfold": lambda x: x.unfold(2, 2, 2).movedim(-1, 3).flatten(2, 3),
    "unfold to columns": lambda x: F.unfold(x, 2, stride=2).unflatten(2, (3, 4)).unflatten(1, (-1, 2, 2)).permute(
        0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3),
    "windows in the batch": lambda x: x.unflatten(3, (2, 4)).movedim(3, 1).flatten(0, 1).unflatten(
        0, (-1, 2)).movedim(1, 3).flatten(3),
    "flips": lambda x: x.flip(2).flip((2,)),
    "halves": lambda x: torch.cat(x.chunk(2, 3), 3),
    "rows": lambda x: torch.stack(x.unbind(2)).movedim(0, 2),
    "pad and cut": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "reshape": lambda x: x.reshape(len(x), -1).reshape(x.shape),
    "index": lambda x: x[..., torch.arange(7, -1, -1)].flip(-1),
}  # fmt: skip


@functools.cache
def usual_maps(complete):
    torch.manual_seed(0)
    net, x = small_net(), torch.randn(2, 3, 6, 8)
    return net, x, FullGrad(net, complete=complete).attribute(x, 1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["transpose", "movedim", "unsqueeze", "flatten"]), st.integers(0, 9)),
             max_size=5),
    st.sampled_from(sorted(DETOURS)),
    st.booleans(),
)  # fmt: skip
def test_the_same_network_fed_in_another_layout_has_the_same_map(steps, detour, complete):
    net, x, usual = usual_maps(complete)
    other, back = there_and_back(x, steps)
    assert torch.equal(DETOURS[detour](back(other)), x)
    parts = FullGrad(lambda y: net(DETOURS[detour](back(y))), complete=complete).attribute(other, 1)
    torch.testing.assert_close(back(parts), usual, rtol=1e-4, atol=1e-5)


def norm_first():
    norm = nn.LayerNorm(12)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm, nn.Conv1d(6, 4, 3), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))


def spectrogram():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 4, stride=2), nn.Flatten(2), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        nn.Linear(4, 2),
    )


@pytest.mark.parametrize(
    ("network", "shape", "there", "back"),
    [
        (norm_first, (2, 6, 12), lambda x: x.mT, lambda x: x.mT),
        (norm_first, (2, 6, 12), lambda x: x.unsqueeze(1), lambda x: x[:, 0]),
        (spectrogram, (2, 1, 10, 8), lambda x: x.squeeze(1), lambda x: x.unsqueeze(1)),
        (spectrogram, (2, 1, 10, 8), lambda x: x.movedim(1, 3), lambda x: x.movedim(3, 1)),
    ],
    ids=[
        "a norm over time, transposed",
        "a norm over time, as a map",
        "spectrogram (N, T, F)",
        "spectrogram (N, T, F, 1)",
    ],
)
def test_twins_in_two_layouts_have_the_same_map(network, shape, there, back):
    torch.manual_seed(0)
    same_maps(network(), torch.randn(shape), there, back)


def test_only_the_sample_that_counts():
    conv = nn.Conv1d(1, 2, 1)
    nn.init.ones_(conv.bias)
    for shape, of in (((1, 1, 50), lambda x: x), ((3, 50), lambda x: x.unsqueeze(1)), ((2, 50, 1), lambda x: x.mT)):
        parts = FullGrad(lambda x, of=of: conv(of(x))[:, :, 40].sum(1, keepdim=True), complete=True)
        parts = parts.attribute(torch.zeros(shape)).reshape(shape[0], 50)
        expected = torch.zeros(shape[0], 50)
        expected[:, 40] = 2
        torch.testing.assert_close(parts, expected)


def test_the_layout_can_be_said():
    # Over (N, 4, 6) a norm tells nothing of channels; its term's place is what the user calls positions.
    norm, x = nn.LayerNorm(6), torch.randn(2, 4, 6)
    nn.init.normal_(norm.bias)

    def f(x):
        return norm(x).pow(2).sum((1, 2)).sigmoid()

    rows = FullGrad(f, complete=True, layout=(1,)).attribute(x) - FullGrad(f).decompose(x).inputs[0]
    columns = FullGrad(f, complete=True, layout=[(-1,)]).attribute(x) - FullGrad(f).decompose(x).inputs[0]
    torch.testing.assert_close(rows, rows.mean(2, keepdim=True).expand_as(rows))
    torch.testing.assert_close(columns, columns.mean(1, keepdim=True).expand_as(columns))
    for wrong in ((0,), (3,), (1, 1), [(1,), (2,)]):
        with pytest.raises(ValueError, match=r"layout says which dimensions"):
            FullGrad(f, layout=wrong).attribute(x)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.flip(1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flip(1)


class TestOutOfSight:
    """Operations that the trace does not see, or knows nothing of: derivatives of a few elements tell."""

    @pytest.mark.parametrize("function", [Swish.apply, lambda x: torch.special.entr(x.abs() + 1)],
                             ids=["custom function", "not in the table"])  # fmt: skip
    def test_what_is_elementwise_keeps_its_place(self, function):
        x = torch.rand(2, 5, dtype=torch.float64)
        parts = FullGrad(lambda x: function(x)[:, 3:].sum(1, keepdim=True), complete=True).attribute(x, 0)
        expected = torch.where(torch.arange(5) >= 3, function(x), 0)
        torch.testing.assert_close(parts, expected)

    @pytest.mark.parametrize(
        "move", [Flip.apply, torch.vmap(lambda row: row.flip(0)), torch.vmap(lambda row: row.roll(1))],
        ids=["custom function", "vmap of flip", "vmap of roll"],
    )  # fmt: skip
    def test_what_moves_elements_has_no_place(self, move):
        x = torch.rand(2, 6, dtype=torch.float64)
        weights = torch.tensor([5.0, 1.0, 0.0, 2.0, 0.0, 1.0], dtype=torch.float64)
        full = FullGrad(lambda x: (move(x).exp() * weights).sum(1, keepdim=True))
        terms, parts = full.decompose(x, 0), FullGrad(full.forward_func, complete=True).attribute(x, 0)
        rest = (terms.output - terms.inputs[0].sum(1))[:, None] / 6
        torch.testing.assert_close(parts, terms.inputs[0] + rest)
        assert bool((terms.unplaced_share() > 0.1).all())

    def test_frames_by_vmap_are_counted(self):
        frame = nn.Conv2d(3, 4, 3, padding=1)

        def model(x):
            return torch.vmap(lambda y: frame(y).tanh(), in_dims=1)(x).pow(2).sum((0, 2, 3, 4))

        full = FullGrad(model).decompose(torch.randn(2, 5, 3, 4, 6))
        assert float(full.gap().max()) < 1e-5
        with pytest.warns(UserWarning, match="has no place"):
            FullGrad(model, complete=True).attribute(torch.randn(2, 5, 3, 4, 6))

    def test_what_mixes_a_dimension_loses_it(self):
        place, _ = places(lambda x: torch.cumprod(x, 1).exp(), torch.rand(2, 6, 5) + 1)["exp"]
        assert place.telling == {(0, 2)}


def test_padding_on_one_side_leaves_rows_and_columns_apart():
    # As networks from other frameworks pad; the cells of a map are those of its rows times those of its columns.
    def model(x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.ones(2, 1, 3, 3), torch.ones(2), stride=2)

    place, _ = places(model, torch.randn(1, 1, 8, 8))["conv2d"]
    assert [place.axes[0, d][0].codes.shape for d in (2, 3)] == [(1, 1, 4, 1), (1, 1, 1, 4)]


@pytest.mark.parametrize("size", [7, 30])
def test_rows_that_depend_on_columns(size):
    # The elements of x + x.mT stand over the square between their row and their column; as a table of rows' cells times
    # columns' cells that would be 30 ** 4 / 4 of them.
    weights = torch.zeros(size, size, dtype=torch.float64)
    weights[2, 5] = 1.0
    weights[0, 0] = 2.0
    x = torch.rand(2, 1, size, size, dtype=torch.float64)
    parts = FullGrad(lambda x: ((x + x.mT).exp() * weights).sum((1, 2, 3)), complete=True).attribute(x)
    for square, weight, (i, j) in ((slice(2, 6), 1.0, (2, 5)), (slice(0, 1), 2.0, (0, 0))):
        s = x[:, 0, i, j] + x[:, 0, j, i]
        for a, b in {(i, j), (j, i)}:
            parts[:, 0, a, b] -= weight * s.exp() * x[:, 0, a, b] * (2 if i == j else 1)
        area = parts[:, 0, square, square][0].numel()
        parts[:, 0, square, square] -= (weight * s.exp() * (1 - s) / area)[:, None, None]
    torch.testing.assert_close(parts, torch.zeros_like(parts))


class TestWhatHasNoPlace:
    def test_shares(self):
        linear = nn.Linear(6, 1)
        nn.init.ones_(linear.weight)
        nn.init.constant_(linear.bias, 18.0)
        full = FullGrad(nn.Sequential(nn.Flatten(), linear)).decompose(torch.ones(1, 1, 2, 3))
        assert float(full.leak()) == float(full.unplaced_share()) == 0.75

    def test_more_than_half_is_said(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
        with pytest.warns(UserWarning, match="1:linear"):
            FullGrad(model, complete=True).attribute(torch.zeros(1, 1, 2, 3))
        with pytest.warns(UserWarning, match="1:linear"):
            FullGrad(model).attribute(torch.zeros(1, 1, 2, 3))

    @pytest.mark.parametrize("method", [FullGrad, SimpleFullGrad, SmoothFullGrad])
    def test_a_map_that_no_bias_term_reaches_is_said(self, method):
        pooled = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
        with pytest.warns(UserWarning, match="2:linear"):
            method(pooled).attribute(torch.randn(2, 4, 7), 1)

    @pytest.mark.filterwarnings("error")
    def test_a_convolution_over_embeddings_reaches_them(self):
        class TextCNN(nn.Module):
            def __init__(self):
                super().__init__()
                self.convolution, self.head = nn.Conv1d(6, 4, 3), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(self.convolution(x.transpose(1, 2)).relu().amax(2))

        torch.manual_seed(0)
        model, x = TextCNN(), torch.randn(2, 9, 6)
        maps = [method(model).attribute(x, 1) for method in (FullGrad, SimpleFullGrad)]
        assert float((maps[0] - maps[1]).abs().max()) > 0.01

    @pytest.mark.filterwarnings("error")
    def test_dense_layers_over_features_say_nothing(self):
        model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))
        for complete in (True, False):
            FullGrad(model, complete=complete).attribute(torch.zeros(2, 6))

    @pytest.mark.parametrize("complete", [True, False])
    def test_too_little_is_refused(self, complete):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
        x = torch.zeros(1, 1, 2, 3)
        with pytest.raises(RuntimeError, match=r"lower min_placed"):
            FullGrad(model, complete=complete, min_placed=0.1).attribute(x)
        with pytest.raises(RuntimeError, match=r"lower min_placed"):
            FullGrad(model, min_placed=0.1).decompose(x)
        FullGrad(small_net(), complete=complete, min_placed=0.1).attribute(torch.randn(1, 3, 6, 8), 1)

    def test_a_share_is_in_the_unit_interval(self):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            FullGrad(nn.Linear(2, 1), min_placed=2)


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, batch_first=True, last=False, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent = kind(4, 5, batch_first=batch_first, **settings)
        self.head = nn.Linear(5 * (1 + bool(settings.get("bidirectional"))), 2)
        self.batch_first, self.last = batch_first, last

    def forward(self, x):
        y = self.recurrent(x if self.batch_first else x.transpose(0, 1))[0]
        time = 1 if self.batch_first else 0
        return self.head(y.select(time, -1) if self.last else y.mean(time))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrence_in_both_layouts(kind):
    x = torch.randn(3, 3, 4)  # as many steps as examples
    for complete in (True, False):
        first, second = (Recurrent(kind, b, bidirectional=True) for b in (True, False))
        maps = [FullGrad(m, complete=complete).attribute(x, 1) for m in (first, second)]
        torch.testing.assert_close(*maps)


def test_time_first_recurrence_keeps_the_tokens():
    place, shape = places(Recurrent(nn.GRU, False, last=True), torch.randn(3, 6, 4))["recurrent:gru"]
    assert shape == (6, 3, 5)
    assert cells(place, shape, 1)[:, 0, 0].tolist() == list(range(6))
    assert cells(place, shape, 0)[0, :, 0].tolist() == list(range(3))


def test_as_many_steps_as_examples():
    # (L, N, E) with L = N and all terms zero: only the places tell positions from examples.
    model, x = Recurrent(nn.RNN, False, nonlinearity="relu", bias=False), torch.randn(3, 3, 4)
    together = SimpleFullGrad(model).attribute(x, 1)
    alone = [SimpleFullGrad(model).attribute(x[i : i + 1], 1) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


class Encoder(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        nn.init.normal_(self.attention.in_proj_bias)
        self.norm, self.head, self.batch_first = nn.LayerNorm(4), nn.Linear(4, 2), batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0]).tanh()
        return self.head(x.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("balanced", [False, True])
def test_attention_in_both_layouts(balanced):
    # Opened, attention over (L, N, E) flattens to (L * N, E): the examples stand in between.
    x = torch.randn(2, 6, 4)
    runs = []

    def counted(model):
        model.register_forward_hook(lambda *_: runs.append(1))
        return BalancedGradients(model) if balanced else model

    maps = [FullGrad(counted(Encoder(b)), complete=True).attribute(x, 1) for b in (True, False)]
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5)
    assert len(runs) == 2  # none was run one example at a time


def test_frames_folded_into_the_batch():
    torch.manual_seed(0)
    frame, head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def folded(x):
        y = frame(x.flatten(0, 1)).tanh().mean((2, 3))
        return head(y.view(len(x), -1, 4).mean(1))

    def at_once(x):
        return head(F.conv3d(x.transpose(1, 2), frame.weight[:, :, None], frame.bias, padding=(0, 1, 1)).tanh().mean(
            (2, 3, 4)))  # fmt: skip

    x = torch.randn(2, 5, 3, 4, 6)
    maps = [FullGrad(f, complete=True).attribute(x, 1) for f in (folded, at_once)]
    torch.testing.assert_close(*maps)
    assert traced(folded, x).positions.of_all() == traced(at_once, x).positions.of_all() == ((1, 3, 4),)


def test_a_masked_autoencoders_indices():
    # Each example keeps other tokens, by gather.
    ids = torch.tensor([[3, 0], [1, 2]])

    def model(x):
        return torch.gather(x, 1, ids[..., None].expand(-1, -1, 3)).exp().sum((1, 2))

    x = torch.randn(2, 4, 3)
    parts = FullGrad(model, complete=True).attribute(x)
    expected = torch.zeros_like(x)
    for n, row in enumerate(ids):
        expected[n, row] = x[n, row].exp()
    torch.testing.assert_close(parts, expected)


def test_two_inputs_share_a_term():
    x, y = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    a, b = FullGrad(lambda x, y: (x + y).exp().sum((1, 2, 3)), complete=True).attribute((x, y))
    e = (x + y).exp()
    torch.testing.assert_close(a, e * x + e * (1 - x - y) / 2)
    torch.testing.assert_close(b, e * y + e * (1 - x - y) / 2)


def test_two_inputs_side_by_side():
    x, y = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    parts = FullGrad(lambda x, y: torch.cat([x, y], 1).exp().sum((1, 2)), complete=True).attribute((x, y))
    torch.testing.assert_close(parts, (x.exp(), y.exp()))


def test_smooth_maps_in_any_layout():
    torch.manual_seed(0)
    model, x = small_net(), torch.randn(2, 3, 6, 8)
    last = x.movedim(1, 3).contiguous()
    usual = SmoothFullGrad(model).attribute(x, 1, nt_samples=2, stdevs=0.0)
    other = SmoothFullGrad(lambda y: model(y.movedim(3, 1))).attribute(last, 1, nt_samples=2, stdevs=0.0)
    torch.testing.assert_close(other, usual.movedim(1, 3), rtol=1e-4, atol=1e-5)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 1, 1)
        self.grow = nn.ConvTranspose2d(3, 3, 2, stride=2)

    def forward(self, x):
        skip = self.down(x).tanh()
        deep = self.deep(F.max_pool2d(skip, 2)).tanh()
        y = torch.cat([skip, self.grow(deep), F.interpolate(deep, scale_factor=2)[:, :0]], 1)
        return self.up(y).tanh()


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GELU(), nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Tanh())


def patched(x):
    """PatchTST-like: overlapping patches of each series."""
    torch.manual_seed(0)
    return nn.Linear(4, 3)(x.transpose(1, 2).unfold(2, 4, 2)).tanh()


def attended(x):
    torch.manual_seed(0)
    q, k, v = nn.Linear(4, 12)(x).chunk(3, 2)
    weights = torch.einsum("nie,nje->nij", q, k).softmax(-1)
    return (weights @ v + x).tanh()


def written(x):
    """Tokens written into a buffer behind a class token."""
    buffer = torch.zeros(len(x), x.size(1) + 1, 4)
    buffer[:, 1:] = x
    return buffer.exp()


DEPENDENT = {
    "U-Net": (UNet(), (1, 1, 8, 8)),
    "convolutions": (convolutional(), (1, 1, 6, 6)),
    "strided": (nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.GELU(), nn.AvgPool2d(2)), (1, 1, 8, 8)),
    "valid": (nn.Sequential(nn.Conv1d(1, 2, 5), nn.GELU(), nn.Conv1d(2, 2, 4), nn.Tanh()), (1, 1, 14)),
    "patches of a series": (patched, (1, 10, 2)),
    "attention": (attended, (1, 5, 4)),
    "written": (written, (1, 5, 4)),
    "recurrence": (Recurrent(last=True), (1, 5, 4)),
    "video": (nn.Sequential(nn.Conv3d(1, 2, (3, 1, 1), padding=(1, 0, 0)), nn.GELU()), (1, 1, 4, 3, 3)),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_an_element_lies_on_inputs_that_it_depends_on(name):
    model, shape = DEPENDENT[name]
    x = torch.randn(shape, requires_grad=True)
    y = model(x)
    trace = Trace()
    (tracked,) = trace.track((x,))
    with trace:
        out = model(tracked)
    place = trace._place(out)
    for element in itertools.islice(itertools.product(*(range(s) for s in y.shape)), 0, None, 7):
        (gradient,) = torch.autograd.grad(y[element], x, retain_graph=True)
        for (_, dim), (axis,) in place.axes.items():
            code = int(axis.codes.expand(y.shape)[element])
            if code < 0:
                continue
            lo, hi = axis.cells.bounds[code].tolist()
            others = [d for d in range(x.ndim) if d != dim]
            seen = gradient.abs().sum(others)
            assert bool(seen[int(lo) : max(int(hi + 0.999), int(lo) + 1)].any()) or not bool(seen.any())


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
        spread = resize(values, [area_matrix(height, h), area_matrix(width, w)])
        assert spread.shape == (3, height, width)
        torch.testing.assert_close(spread.sum((1, 2)), values.sum((1, 2)))

    def test_spreading_covers_the_right_positions(self):
        values = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
        expected = torch.tensor([[[0.4, 0.4, 0.2, 0.0, 0.0]]], dtype=torch.float64)
        torch.testing.assert_close(resize(values, [area_matrix(1, 1), area_matrix(5, 2)]), expected)

    @pytest.mark.parametrize(("mode", "rank"), [("linear", 1), ("bilinear", 2), ("trilinear", 3)])
    def test_interpolation_is_torchs(self, mode, rank):
        values = torch.randn(2, *(3, 1, 4)[:rank], dtype=torch.float64)
        size = (7, 5, 4)[:rank]
        expected = F.interpolate(values.unsqueeze(1), size=size, mode=mode, align_corners=True).squeeze(1)
        matrices = [linear_matrix(s, v) for s, v in zip(size, values.shape[1:], strict=True)]
        torch.testing.assert_close(resize(values, matrices), expected)

    def test_uneven_intervals_count_where_they_cover(self):
        cells = Cells.of(4, torch.tensor([[0.0, 4.0], [1.0, 2.0]], dtype=torch.float64))
        assert cells.interpolation().T.tolist() == [[1, 1, 1, 1], [0, 1, 0, 0]]
        assert cells.area().T.tolist() == [[0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0]]
