"""Rewriting: the same function in another form; what cannot be rewritten is refused; the original stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.rewriting import fold_batch_norm, insert_identity, permute_hidden_units, split_layer

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def with_statistics(model):
    """In evaluation mode and double precision, every batch norm with numbers of its own."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0, 0.5)
    return model.double().eval()


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Network(nn.Module):
    """Convolutions, batch norm, flattening by a function, and a batch norm of features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6), nn.MaxPool2d(2))
        self.hidden, self.norm, self.last = nn.Linear(24, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.flatten(self.body(x), 1)
        return self.last(torch.relu(self.norm(self.hidden(x))) * 2)


@pytest.fixture
def network():
    return with_statistics(Network())


def same_function(model, rewritten, *shape):
    x = normal(*shape)
    assert_close(rewritten(x), model(x), rtol=1e-10, atol=1e-10)


REWRITINGS = {
    "fold": fold_batch_norm,
    "split": lambda model: split_layer(model, "body.0"),
    "permute": lambda model: permute_hidden_units(model, "body.0", "hidden"),
    "identity": lambda model: insert_identity(model, "hidden"),
}


# ----------------------------------------------------------------------------------------------------------------------
# The same function, another network


@pytest.mark.parametrize("name", REWRITINGS)
def test_function_stays_and_network_changes(network, name):
    rewritten = REWRITINGS[name](network)
    same_function(network, rewritten, 4, 2, 4, 4)
    before, after = network.state_dict(), rewritten.state_dict()
    assert before.keys() != after.keys() or any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", REWRITINGS)
def test_original_stays_as_it_was(network, name):
    before, random = copy.deepcopy(network), torch.get_rng_state()
    network.last.weight.requires_grad_(False)
    network.hidden.weight.grad = torch.ones_like(network.hidden.weight)
    rewritten = REWRITINGS[name](network)
    assert torch.equal(torch.get_rng_state(), random)
    assert [type(m) for m in network.modules()] == [type(m) for m in before.modules()]
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert torch.equal(network.hidden.weight.grad, torch.ones_like(network.hidden.weight))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    with torch.no_grad():
        for parameter in rewritten.parameters():
            parameter.fill_(7)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert not rewritten.last.weight.requires_grad


@pytest.mark.parametrize("name", REWRITINGS)
def test_precision_and_gradient_flag_are_kept(network, name):
    network.float().requires_grad_(False)
    rewritten = REWRITINGS[name](network)
    assert {p.dtype for p in rewritten.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in rewritten.parameters())
    assert not any(module.training for module in rewritten.modules())
    x = torch.randn(4, 2, 4, 4)
    assert_close(rewritten(x), network(x), rtol=1e-4, atol=1e-5)


def test_all_four_one_after_the_other(network):
    rewritten = split_layer(fold_batch_norm(permute_hidden_units(network, "hidden", "last")), "hidden")
    same_function(network, insert_identity(rewritten, "body.0"), 4, 2, 4, 4)


@st.composite
def convolutions(draw):
    """A convolution, its number of dimensions and a shape of an input."""
    dimensions, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    kinds = draw(st.sampled_from([CONVOLUTIONS, TRANSPOSED]))
    a, b = (groups * draw(st.integers(1, 2)) for _ in range(2))
    options = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1)), "bias": draw(st.booleans())}
    return (
        kinds[dimensions](a, b, draw(st.integers(2, 3)), groups=groups, **options),
        dimensions,
        (2, a, *[5] * dimensions),
    )


@settings(max_examples=40)
@given(convolutions(), st.booleans(), st.integers(0, 9))
def test_every_convolution_folds_and_splits(drawn, affine, seed):
    convolution, dimensions, shape = drawn
    norm = NORMS[dimensions](convolution.out_channels, affine=affine)
    model = with_statistics(nn.Sequential(convolution, norm))
    folded = fold_batch_norm(model)
    assert isinstance(folded[1], nn.Identity)
    same_function(model, folded, *shape)
    split = split_layer(model, "0", seed)
    same_function(model, split, *shape)
    assert split[0][0].bias is None
    assert split[0][1].groups == convolution.groups


@settings(max_examples=40)
@given(st.data(), st.integers(1, 3), st.integers(0, 9))
def test_every_pair_of_convolutions_permutes(data, dimensions, seed):
    groups = [data.draw(st.sampled_from([1, 2])) for _ in range(2)]
    kinds = [data.draw(st.sampled_from([CONVOLUTIONS, TRANSPOSED]))[dimensions] for _ in range(2)]
    model = with_statistics(
        nn.Sequential(
            *(kinds[0](2, 4, 2, groups=groups[0]), NORMS[dimensions](4), nn.PReLU(4)),
            kinds[1](4, 2, 2, groups=groups[1]),
        )
    )
    permuted = permute_hidden_units(model, "0", "3", seed)
    same_function(model, permuted, 2, 2, *[4] * dimensions)
    for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight", "3.weight"):
        assert not torch.equal(permuted.state_dict()[key], model.state_dict()[key]), key


@pytest.mark.parametrize("seed", range(5))
def test_two_units_are_always_exchanged(seed):
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    assert torch.equal(permute_hidden_units(model, "0", "1", seed)[0].weight, model[0].weight.flip(0))


def test_seed_decides(network):
    one, again, other = (split_layer(network, "hidden", seed).state_dict()["hidden.0.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    orders = [permute_hidden_units(network, "body.0", "hidden", seed).body[0].bias for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_rotation_is_orthogonal_and_mixes():
    layer = nn.Linear(5, 6).double()
    q = split_layer(layer, "")[1].weight.T
    assert_close(q @ q.T, torch.eye(6, dtype=torch.float64))
    assert (q.abs() > 1e-3).sum() > 18
    firsts = torch.stack([split_layer(nn.Linear(1, 2), "", seed)[1].weight[0, 0] for seed in range(40)])
    assert 5 < int((firsts > 0).sum()) < 35  # QR alone would give one sign always


def test_identity_is_exact():
    u = torch.tensor([0.0, -0.0, 1e-320, -3.0, float("inf"), -float("inf"), 1e308, 0.1], dtype=torch.float64)
    detour = insert_identity(nn.Identity(), "")
    assert torch.equal(detour(u), u)
    assert detour(torch.tensor([float("nan")])).isnan().all()
    rectifiers = [module for module in detour.modules() if isinstance(module, nn.ReLU)]
    assert len(rectifiers) == 2  # one used twice would mislead hooks
    u = torch.tensor([-2.0, 3.0], requires_grad=True)
    assert torch.autograd.grad(detour(u).sum(), u)[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    "between",
    [
        [nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()],
        [nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(12), nn.PReLU(12)],
        [nn.PReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Dropout()],
    ],
)
def test_flattened_channels_are_blocks(between):
    body = nn.Sequential(nn.Conv2d(1, 3, 1), *between)
    features = body.eval()(torch.zeros(1, 1, 4, 4)).shape[1]
    model = with_statistics(nn.Sequential(body, nn.Linear(features, 2)))
    permuted = permute_hidden_units(model, "0.0", "1", seed=1)
    same_function(model, permuted, 3, 1, 4, 4)
    assert not torch.equal(permuted[1].weight, model[1].weight)


def test_batch_norms_that_follow_no_layer_stay():
    model = with_statistics(
        nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
    )
    folded = fold_batch_norm(model)
    assert [type(module).__name__ for module in folded] == ["BatchNorm1d", "Linear", "Identity", "ReLU", "BatchNorm1d"]
    same_function(model, folded, 4, 3)


class Shared(nn.Module):
    """Reads what a layer returns a second time, and a weight by itself."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.norm, self.second = how, nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.alias, self.norm_alias = self.first, self.norm
        if how == "tied":
            self.second.weight = self.first.weight

    def forward(self, x):
        if self.how == "alias":
            return self.second(self.norm_alias(self.alias(x)))
        u = self.first(x)
        v = self.second(self.norm(u))
        if self.how == "output":
            return v + u
        if self.how == "layer":
            return v + self.alias(v)
        if self.how == "weight":
            return v @ self.first.weight
        if self.how == "norm":
            return self.norm(v)
        return v


@pytest.mark.parametrize("how", ["output", "layer", "weight", "norm"])
def test_what_is_read_elsewhere_is_not_rewritten(how):
    model = with_statistics(Shared(how))
    with pytest.raises(ValueError, match="more than once"):
        fold_batch_norm(model)
    with pytest.raises(ValueError, match=r"more than once|must be read once|must be called once"):
        permute_hidden_units(model, "first", "second")


def test_modules_of_two_names():
    model = with_statistics(Shared("alias"))
    for name in ("first", "alias"):
        split = split_layer(model, name)
        assert isinstance(split.first, nn.Sequential)
        assert split.first is split.alias
        same_function(model, split, 4, 3)
        same_function(model, insert_identity(model, name), 4, 3)
    same_function(model, fold_batch_norm(model), 4, 3)
    same_function(model, permute_hidden_units(model, "alias", "second"), 4, 3)


def test_tied_weights_part():
    model = with_statistics(Shared("tied"))
    same_function(model, fold_batch_norm(model), 4, 3)
    same_function(model, permute_hidden_units(model, "first", "second"), 4, 3)
    same_function(model, split_layer(model, "first"), 4, 3)


# ----------------------------------------------------------------------------------------------------------------------
# Refused


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.last = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)

    def forward(self, x):
        return self.last(self.norm(self.layer(x))) if x.sum() > 0 else x


def sequence(*between, second=None):
    return nn.Sequential(nn.Linear(2, 4), *between, second or nn.Linear(4, 2)).eval()


def convolved(*between, second):
    return nn.Sequential(nn.Conv2d(1, 4, 1), *between, second).eval()


PERMUTING = {
    "softmax": (sequence(nn.Softmax(1)), "mix the units"),
    "group norm": (convolved(nn.GroupNorm(2, 4), second=nn.Conv2d(4, 1, 1)), "mix the units"),
    "pooled features": (sequence(nn.MaxPool1d(1)), "mix the units"),
    "other flattening": (convolved(nn.Flatten(2), second=nn.Linear(4, 2)), "mix the units"),
    "whole flattening": (sequence(nn.Flatten(0)), "mix the units"),
    "nothing flattened": (convolved(second=nn.Linear(4, 2)), "nothing is flattened"),
    "convolution of features": (sequence(nn.Flatten(), second=nn.Conv1d(4, 1, 1)), "reads no features"),
    "no blocks": (sequence(second=nn.Linear(6, 2)), "no equal blocks"),
    "blocks of features": (sequence(nn.Flatten(), second=nn.Linear(8, 2)), "no equal blocks"),
    "other batch norm": (sequence(nn.BatchNorm1d(3)), "3 channels where there are 4 units"),
    "depthwise": (convolved(nn.ReLU(), second=nn.Conv2d(4, 4, 1, groups=4)), "no two units"),
}


@pytest.mark.parametrize("case", PERMUTING)
def test_permuting_refuses(case):
    model, words = PERMUTING[case]
    with pytest.raises(ValueError, match=words):
        permute_hidden_units(model, "0", str(len(model) - 1))


def test_permuting_refuses_layers_that_do_not_meet():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="may mix the units"):
        permute_hidden_units(model, "0", "3")
    with pytest.raises(ValueError, match="does not read"):
        permute_hidden_units(model, "2", "0")
    with pytest.raises(ValueError, match="two layers"):
        permute_hidden_units(model, "2", "2")


class Flattening(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.flatten, self.first, self.second = flatten, nn.Conv2d(1, 4, 1), nn.Linear(16, 2)

    def forward(self, x):
        return self.second(self.flatten(self.first(x)))


@pytest.mark.parametrize(
    "flatten", [lambda x: torch.flatten(x, 1), lambda x: x.flatten(1), lambda x: torch.flatten(x, start_dim=1)]
)
def test_flattening_by_function(flatten):
    model = Flattening(flatten).double()
    same_function(model, permute_hidden_units(model, "first", "second"), 3, 1, 2, 2)


@pytest.mark.parametrize(
    "flatten", [lambda x: torch.flatten(x, 2), torch.flatten, lambda x: x.flatten(1, 2), lambda x: x.reshape(-1, 16)]
)
def test_other_flattening_by_function_is_refused(flatten):
    with pytest.raises(ValueError, match="mix the units"):
        permute_hidden_units(Flattening(flatten), "first", "second")


def test_folding_refuses():
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        fold_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="running statistics"):
        fold_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval())
    with pytest.raises(ValueError, match="the model calls none"):
        fold_batch_norm(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="does not directly follow"):
        fold_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2)).eval())
    with pytest.raises(ValueError, match="has 3 channels, the layer 2"):
        fold_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(3)).eval())
    with pytest.raises(ValueError, match=r"torch\.fx cannot trace the model"):
        fold_batch_norm(Branching().eval())


@pytest.mark.parametrize("rewrite", [split_layer, insert_identity])
def test_names_and_parents_are_checked(rewrite):
    with pytest.raises(ValueError, match="no module 'head'; take one of '0'"):
        rewrite(nn.Sequential(nn.Linear(2, 2)), "head")
    with pytest.raises(ValueError, match="part of a TransformerEncoderLayer"):
        rewrite(nn.TransformerEncoderLayer(4, 2, batch_first=True), "linear1")
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, but is function"):
        rewrite(lambda x: x, "")


def test_only_plain_layers():
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Linear, Conv or ConvTranspose layer, but is"):
        split_layer(parametrized, "")
    with pytest.raises(ValueError, match="but is ReLU"):
        split_layer(nn.Sequential(nn.ReLU()), "0")
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        hooked = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
        getattr(hooked[0], register)(lambda *args: None)
        with pytest.raises(ValueError, match="has hooks"):
            fold_batch_norm(hooked)
    with pytest.raises(ValueError, match="never called"):
        insert_identity(nn.Sequential(nn.ModuleList([nn.Linear(1, 1)])), "0")


def test_models_that_cannot_be_traced_still_split():
    model = with_statistics(Branching())
    x = torch.tensor([[3.0, -1.0], [0.5, 0.25]], dtype=torch.float64)
    for rewritten in (split_layer(model, "layer"), insert_identity(model, "layer")):
        assert_close(rewritten(x), model(x))


def test_hooks_are_not_lost():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    handle = model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match="'1' has hooks"):
        fold_batch_norm(model)
    with pytest.raises(ValueError, match="'1', between '0' and '3', has hooks"):
        permute_hidden_units(model, "0", "3")
    handle.remove()
    fold_batch_norm(model), permute_hidden_units(model, "0", "3")


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's of this name: batch norm, dropout and an activation in one module."""

    def __init__(self, num_features, drop=None, act=None):
        super().__init__(num_features)
        self.drop, self.act = drop or nn.Identity(), act or nn.Identity()

    def forward(self, x):
        assert x.ndim == 4
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


@pytest.mark.parametrize(("drop", "act"), [(None, nn.ReLU()), (nn.Dropout2d(), nn.SiLU(inplace=True)), (None, None)])
def test_batch_norms_of_timm_leave_their_activation(drop, act):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormAct2d(4, drop, act), nn.Conv2d(4, 2, 3)).double()
    nn.init.normal_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 0.5, 2.0)
    model.eval()
    folded, x = fold_batch_norm(model), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert_close(folded(x), model(x))


def test_batch_norms_that_may_do_more_are_left():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="Doubled, which may do more"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(1, 4, 3), Doubled(4)).eval())
