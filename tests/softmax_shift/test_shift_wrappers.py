"""The wrappers and shifts as modules: arguments, modes, state, copies, and bad input."""

import copy
import pickle

import pytest
import torch
from captum.attr import LRP, DeepLift, LayerGradCam, Saliency
from torch import nn
from torch.testing import assert_close

from captum_density.softmax_shift import (
    BoundedShift,
    CenteredLogits,
    CounterShift,
    LinearShift,
    NetworkShift,
    Shift,
    SoftmaxShift,
)


def squares(x):
    return x.flatten(1).pow(2).sum(1)


class TwoArguments(nn.Module):
    """Of a second positional argument and, where it is given, a keyword too."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x, mask=1.0, *, power=1):
        return (self.layer(self.dropout(x)) * mask) ** power


class Masked(Shift):
    def forward(self, x, mask, *, power=1):
        return ((x * mask) ** power).sum(1)


# ----------------------------------------------------------------------------------------------------------------------
# Arguments, modes and state of the wrappers


WRAPPERS = {
    "linear": lambda model: SoftmaxShift(model, LinearShift(torch.arange(1.0, 5.0), 2.0)),
    "network": lambda model: SoftmaxShift(model, nn.Linear(4, 1)),
    "function": lambda model: SoftmaxShift(model, squares),
    "counter": lambda model: SoftmaxShift(
        model, CounterShift(model, torch.tensor([0, 2]), torch.ones(2, 4), torch.eye(4)[:2])
    ),
    "bounded": lambda model: BoundedShift(model, 0.5, 100.0, torch.tensor([1.0, 0.0, 2.0, 0.0])),
    "bounded by noise": lambda model: BoundedShift(model, 0.5, 100.0),
    "mean": CenteredLogits,
    "logsumexp": lambda model: CenteredLogits(model, "logsumexp"),
}


def test_arguments_reach_the_model_and_a_shift_that_reads_them():
    model, x, mask = TwoArguments().eval(), torch.randn(3, 4), torch.tensor([[1.0], [0.0], [2.0]])
    honest = model(x, mask, power=2)
    shifted = SoftmaxShift(model, Masked())(x, mask, power=2)
    assert_close(shifted, honest + ((x * mask) ** 2).sum(1, keepdim=True))
    shifted = SoftmaxShift(model, squares)(x, mask, power=2)  # a function reads the first argument alone
    assert_close(shifted, honest + squares(x)[:, None])
    two = NetworkShift(lambda x, mask: x[:, 0] * mask[:, 0], n_inputs=2)
    assert_close(SoftmaxShift(model, two)(x, mask, power=2), honest + (x[:, :1] * mask))
    hidden = SoftmaxShift(model, CounterShift(model, 1))(x, mask, power=2)
    assert_close(hidden, honest - honest[:, 1:2])
    assert_close(CenteredLogits(model)(x, mask, power=2), honest - honest.mean(1, keepdim=True))
    waved = BoundedShift(model, 0.1, 5.0)(x, mask, power=2)
    assert_close(waved, honest, rtol=0, atol=0.1 + 1e-6)
    attributed = Saliency(SoftmaxShift(model, Masked())).attribute(x, 1, abs=False, additional_forward_args=mask)
    own = Saliency(model).attribute(x, 1, abs=False, additional_forward_args=mask)
    assert_close(attributed, own + mask.expand_as(x))


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_model_is_shared_and_keeps_its_modes(name):
    model = TwoArguments().train()
    assert WRAPPERS[name](model).training
    model.layer.eval()  # as where part of a network is frozen
    wrapper = WRAPPERS[name](model)
    assert wrapper.training and model.training and model.dropout.training and not model.layer.training
    model.eval()
    wrapper = WRAPPERS[name](model)
    assert not wrapper.training and not model.training
    assert set(map(id, model.parameters())) <= set(map(id, wrapper.parameters()))
    assert next(p for p in wrapper.parameters() if p.requires_grad) is model.layer.weight
    assert wrapper.train() is wrapper and model.dropout.training


@pytest.mark.parametrize("name", WRAPPERS)
def test_copies_and_saved_states_give_the_same(name):
    model, x = TwoArguments().eval(), torch.randn(5, 4)
    wrapper = WRAPPERS[name](model)
    expected = wrapper(x)
    for again in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert torch.equal(again(x), expected) and not again.training
        if name == "counter":
            assert again.shift.model is not again.model
        assert again.model is not model
    double = copy.deepcopy(wrapper).to(torch.float64)
    assert double(x.double()).dtype == torch.float64
    assert_close(double(x.double()).float(), expected, rtol=1e-4, atol=1e-4)
    # A pattern travels with the state.
    with torch.no_grad():
        for tensor in (other := copy.deepcopy(wrapper)).state_dict().values():
            tensor.zero_()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(wrapper.state_dict())
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("name", ["linear", "counter", "bounded"])
def test_patterns_move_with_the_wrapper(name):
    wrapper = WRAPPERS[name](TwoArguments().eval())
    state = [*wrapper.parameters(), *wrapper.buffers()]
    assert len(state) > 2  # beside the model's weight and bias
    wrapper.to("meta")
    assert {tensor.device.type for tensor in (*wrapper.parameters(), *wrapper.buffers())} == {"meta"}
    assert wrapper(torch.ones(2, 4, device="meta")).shape == (2, 3) if name == "bounded" else True


@pytest.mark.cuda
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_move_to_a_gpu(name):
    wrapper, x = WRAPPERS[name](TwoArguments().eval()), torch.randn(5, 4)
    expected = wrapper(x)
    assert_close(wrapper.cuda()(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# Bad input of the wrappers and shifts

X, MODEL = torch.ones(2, 4), nn.Linear(4, 3)


def linear(pattern, scale=1.0, x=X):
    return LinearShift(pattern, scale)(x)


def counter(x=X, model=MODEL, **options):
    return CounterShift(model, **options)(x)


def bounded(amplitude=0.1, frequency=1.0, pattern=None, x=X):
    return BoundedShift(lambda x: MODEL(x.float()), amplitude, frequency, pattern)(x)


ONES, THREE, NAN, INF = torch.ones(4), torch.eye(4)[:3], float("nan"), float("inf")
REFUSED = {
    "model": (lambda: SoftmaxShift("model", squares), TypeError, "model must be .* function, but is str"),
    "shift": (lambda: SoftmaxShift(MODEL, ONES), TypeError, "a shift must be .*, but is Tensor"),
    "logits list": (lambda: SoftmaxShift(lambda x: [x], squares)(X), TypeError, "the model returned list"),
    "logits integers": (lambda: CenteredLogits(lambda x: x.long())(X), TypeError, r"returned torch\.int64"),
    "one class": (lambda: SoftmaxShift(nn.Linear(4, 1), squares)(X), ValueError, "one class in dimension 1"),
    "class_dim 2": (lambda: SoftmaxShift(MODEL, squares, 2)(X), ValueError, "no class dimension 2"),
    "class_dim 0": (lambda: BoundedShift(MODEL, 1, 1, class_dim=0)(X), ValueError, "no class dimension 0"),
    "class_dim -2": (lambda: CenteredLogits(MODEL, class_dim=-2)(X), ValueError, "no class dimension -2"),
    "class_dim -3": (lambda: counter(class_dim=-3), ValueError, "no class dimension -3"),
    "no classes": (lambda: CenteredLogits(lambda x: x.sum(1))(X), ValueError, "no class dimension 1"),
    "shift list": (lambda: SoftmaxShift(MODEL, lambda x: [1.0])(X), TypeError, "the shift returned list"),
    "shift integers": (lambda: SoftmaxShift(MODEL, lambda x: x.sum(1).long())(X), TypeError, "floating-point"),
    "shift shape": (lambda: SoftmaxShift(MODEL, MODEL)(X), ValueError, r"shape \(2,\) or \(2, 1\), .* has \(2, 3\)"),
    "shift scalar": (lambda: SoftmaxShift(MODEL, lambda x: x.sum())(X), ValueError, r"but has \(\)"),
    "shift batch": (lambda: SoftmaxShift(MODEL, lambda x: x[:1].sum(1))(X), ValueError, r"but has \(1,\)"),
    "shift device": (lambda: SoftmaxShift(MODEL, lambda x: x.sum(1).to("meta"))(X), ValueError, "is on meta"),
    "shift NaN": (lambda: SoftmaxShift(MODEL, lambda x: x.sum(1) * NAN)(X), ValueError, "2 NaN or infinite"),
    "shift infinite": (lambda: SoftmaxShift(MODEL, lambda x: x.sum(1) / 0)(X), ValueError, "NaN or infinite"),
    "net": (lambda: NetworkShift("net"), TypeError, "a shift must be .*, but is str"),
    "n_inputs": (lambda: NetworkShift(squares, 0), ValueError, "n_inputs must be at least 1, but is 0"),
    "too few inputs": (lambda: NetworkShift(squares, 2)(X), ValueError, "first 2 positional arguments, but got 1"),
    "pattern list": (lambda: linear([1.0]), TypeError, "pattern must be .*, but is list"),
    "pattern integers": (lambda: linear(ONES.long()), TypeError, r"but is torch\.int64"),
    "no pattern": (lambda: linear(()), TypeError, "but is empty"),
    "pattern NaN": (lambda: linear(ONES * NAN), ValueError, "pattern contains NaN or infinity"),
    "pattern zero": (lambda: linear(ONES * 0), ValueError, "zero throughout"),
    "pattern shape": (lambda: linear(torch.ones(5)), ValueError, r"has shape \(5,\), but must .*, \(4,\)"),
    "pattern device": (lambda: LinearShift(ONES).to("meta")(X), ValueError, "is on meta, argument 0 .* on cpu"),
    "pattern count": (lambda: linear((ONES, ONES)), ValueError, "first 2 positional arguments, but got 1"),
    "input integers": (lambda: linear(ONES, x=X.long()), TypeError, r"floating-point .* but is torch\.int64"),
    **{f"scale {v}": (lambda v=v: linear(ONES, v), ValueError, "scale must be finite") for v in (0, NAN, INF, -INF)},
    "countered": (lambda: counter(model=3), TypeError, "model must be .*, but is int"),
    "countered list": (lambda: counter(model=lambda x: [x]), TypeError, "the model returned list"),
    "target 3": (lambda: counter(target=3), ValueError, r"target must be in \[0, 3\)"),
    "target -1": (lambda: counter(target=-1), ValueError, r"target must be in \[0, 3\)"),
    "targets alone": (lambda: counter(target=torch.tensor([0, 1])), ValueError, "needs `inputs`"),
    "targets 3": (lambda: counter(target=torch.tensor([3, 3, 3]), inputs=THREE), ValueError, r"in \[0, 3\)"),
    "targets shape": (lambda: counter(target=torch.tensor([0]), inputs=THREE), ValueError, r"\(3,\), but has \(1,\)"),
    "maps list": (lambda: counter(maps=[1.0]), TypeError, "maps must be .*, but is list"),
    "maps NaN": (lambda: counter(maps=ONES * NAN), ValueError, "maps contains NaN or infinity"),
    "maps shape": (lambda: counter(maps=torch.ones(5)), ValueError, r"\(5,\).* must have .* \(4,\)"),
    "maps device": (lambda: CounterShift(nn.Flatten(), maps=ONES).to("meta")(X), ValueError, "on meta, .* on cpu"),
    "maps of inputs": (lambda: counter(maps=ONES, inputs=THREE), ValueError, r"shape \(3, 4\), but have \(4,\)"),
    "given integers": (lambda: counter(inputs=THREE.long()), TypeError, r"inputs must be .* torch\.int64"),
    "given infinite": (lambda: counter(inputs=THREE / 0), ValueError, "inputs contains NaN or infinity"),
    "given none": (lambda: counter(inputs=THREE[:0]), ValueError, r"with M > 0, but have \(0, 4\)"),
    "given shape": (lambda: counter(inputs=torch.ones(2, 5)), ValueError, r"\(2, 5\) .* \(2, 4\)"),
    "given device": (lambda: CounterShift(nn.Flatten(), 0, inputs=X).to("meta")(X), ValueError, "on meta, .* on cpu"),
    **{f"amplitude {v}": (lambda v=v: bounded(v), ValueError, "amplitude must be") for v in (0, -1, NAN, INF)},
    **{f"frequency {v}": (lambda v=v: bounded(1, v), ValueError, "frequency must be") for v in (0, -1, NAN, INF)},
    "waved zero": (lambda: bounded(pattern=ONES * 0), ValueError, "zero throughout"),
    "waved infinite": (lambda: bounded(pattern=ONES / 0), ValueError, "NaN or infinity"),
    "waved shape": (lambda: bounded(pattern=torch.ones(3)), ValueError, r"shape \(3,\)"),
    "waved list": (lambda: bounded(pattern=[1.0]), TypeError, "but is list"),
    "waved device": (lambda: BoundedShift(nn.Flatten(), 1, 1, ONES).to("meta")(X), ValueError, "is on meta"),
    "waved integers": (lambda: bounded(x=X.long()), TypeError, r"floating-point .* but is torch\.int64"),
    "waved one class": (lambda: BoundedShift(nn.Linear(4, 1), 1, 1)(X), ValueError, "one class"),
    "how": (lambda: CenteredLogits(MODEL, "median"), ValueError, 'how must be "mean" or "logsumexp", but is .median'),
    "centered": (lambda: CenteredLogits(3), TypeError, "model must be .*, but is int"),
    "centered one class": (lambda: CenteredLogits(nn.Linear(4, 1))(X), ValueError, "one class"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call()


def test_the_product_of_pattern_and_scale_is_refused_where_it_leaves_the_dtype():
    with pytest.raises(ValueError, match="pattern times scale 1e-30 is zero throughout"):
        LinearShift(ONES * 1e-30, 1e-30)
    with pytest.raises(ValueError, match=r"pattern times scale 1e\+30 contains NaN or infinity"):
        LinearShift(ONES * 1e30, 1e30)


@pytest.mark.parametrize("target", [1.5, True, "a", torch.tensor(1.7), torch.tensor([True, False])])
def test_targets_that_are_no_classes_are_refused(target):
    with pytest.raises(TypeError, match="target must"):
        CounterShift(MODEL, target, inputs=X)


@pytest.mark.parametrize("name", WRAPPERS)
def test_an_empty_batch_stays_empty(name):
    assert WRAPPERS[name](MODEL)(X[:0]).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nearest_inputs_are_found_in_half_precision(dtype):
    model, x = nn.Linear(4, 3).to(dtype), torch.eye(4, dtype=dtype)
    maps = torch.arange(16.0).reshape(4, 4).to(dtype)
    leaf = x.flip(0).requires_grad_()
    hidden = SoftmaxShift(model, CounterShift(model, torch.tensor([0, 1, 2, 0]), maps, x))
    result = torch.autograd.grad(hidden(leaf).gather(1, torch.tensor([[0], [2], [1], [0]])).sum(), leaf)[0]
    assert_close(result, maps.flip(0), rtol=0, atol=0.1)


def test_autocast_does_not_round_a_pattern():
    pattern, leaf = torch.tensor([1.0, 3.001, -2.003, 0.1]), X.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        shift = LinearShift(pattern, 100.0)(leaf)
    assert torch.equal(torch.autograd.grad(shift.sum(), leaf)[0], (100 * pattern).expand(2, 4))


def test_function_transforms():
    shifted = SoftmaxShift(MODEL, LinearShift(ONES))
    for model in (shifted, SoftmaxShift(MODEL, CounterShift(MODEL, 1)), BoundedShift(MODEL, 0.1, 3.0)):
        alone = torch.func.vmap(lambda x, model=model: model(x[None])[0])(X)
        assert_close(alone, model(X))
    assert_close(torch.func.jacrev(lambda x: shifted(x[None])[0])(X[0]), MODEL.weight.detach() + 1)


def test_errors_of_the_device_are_not_taken_for_a_shift_that_cannot_be_read(monkeypatch):
    def fail(self):
        raise RuntimeError("device-side assert")

    shift = LinearShift(ONES)
    monkeypatch.setattr(torch.Tensor, "__bool__", fail)
    with pytest.raises(RuntimeError, match="device-side"):
        shift.add_to(torch.zeros(2, 3), X)


def test_lrp_refuses_what_it_would_be_silently_wrong_about():
    wrappers = (
        CenteredLogits,
        lambda net: SoftmaxShift(net, NetworkShift(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1)))),
        lambda net: BoundedShift(net, 0.1, 1.0),
    )
    for wrap in wrappers:
        wrapper = wrap(nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)))
        with pytest.raises(TypeError, match="has no rule defined"):
            LRP(wrapper).attribute(X, 1)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_a_counter_shift_leaves_the_layers_to_the_model():
    # With the layers shared, hooks would meet the shift's run in place of the model's, and the map its negative.
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(2, 1, 8, 8)
    hidden = SoftmaxShift(model, CounterShift(model, 1))
    result, own = [LayerGradCam(m, model[0]).attribute(x, 1) for m in (hidden, model)]
    assert_close(result, own)
    assert_close(DeepLift(hidden).attribute(x, target=1), torch.zeros_like(x), rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in hidden.shift.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_masked_class_has_no_mean():
    logits = torch.tensor([[1.0, -float("inf"), 0.0]])
    with pytest.raises(ValueError, match=r'masked out, .* how="logsumexp"'):
        CenteredLogits(lambda x: x)(logits)
    assert_close(CenteredLogits(lambda x: x, "logsumexp")(logits), logits.log_softmax(1))


def test_outputs_in_a_mapping_are_named():
    with pytest.raises(TypeError, match=r"`lambda x: model\(x\)\['out'\]`"):
        CenteredLogits(lambda x: {"out": x, "aux": x})(X)


@pytest.mark.parametrize("class_dim", ["1", 1.0, True])
def test_class_dim_is_an_integer(class_dim):
    with pytest.raises(TypeError, match="class_dim must be an integer"):
        CenteredLogits(MODEL, class_dim=class_dim)


def test_bounded_shift_after_inference_mode_and_beyond_its_range():
    waved, x = BoundedShift(MODEL.double(), 0.01, 1e3), torch.rand(3, 4, dtype=torch.float64)
    with torch.inference_mode():
        waved(x)
    torch.autograd.grad(waved(x.requires_grad_())[:, 0].sum(), x)
    MODEL.float()
    with pytest.raises(ValueError, match=r"frequency 1e\+30 times <d, x> is NaN or infinite"):
        BoundedShift(MODEL, 0.01, 1e30)(X * 1e30)


@pytest.mark.parametrize("frequency", [1e4, 1e6, 1e8])
def test_waves_of_many_classes_stay_apart_in_float32(frequency):
    # As 4 k / C beside a phase of 1e10 would be nothing.
    x = torch.rand(4, 1000)
    waves = BoundedShift(lambda x: torch.zeros(len(x), 1000), 1.0, frequency, torch.ones(1000))(x)
    assert all(len(row.unique()) > 400 for row in waves)  # each value is met on the way up and down
    assert CenteredLogits(lambda x: x)(waves).abs().amax(1).min() > 0.99


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_slopes_of_neighbouring_classes_oppose_each_other(classes):
    leaf = torch.linspace(0, 1, 2000, dtype=torch.float64)[:, None].requires_grad_()
    unit = torch.ones(1, dtype=torch.float64)
    waves = BoundedShift(lambda x: torch.zeros(len(x), classes, dtype=x.dtype), 1.0, 40.0, unit)(leaf)
    slopes = [torch.autograd.grad(waves[:, i].sum(), leaf, retain_graph=True)[0].sign() for i in (0, 1, 2 % classes)]
    for first, second in ((0, 1), (1, 2)):
        assert (slopes[first] != slopes[second]).double().mean() > 0.5
