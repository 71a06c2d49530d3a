"""Completeness over operations, spelled every way PyTorch has, and nothing left behind."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_density._linear.trace import Trace
from captum_density.attr import FullGrad
from captum_density.testing import assert_complete

DOUBLE = torch.float64


def check(model, *inputs, target=None, args=None, bound=1e-13):
    """Every example complete; the output the model's own; the same examples alone give the same terms."""
    xs = tuple(x.to(DOUBLE) for x in inputs)
    full = FullGrad(model).decompose(xs, target, args)
    assert_complete(full)
    assert float(full.gap().max()) < bound
    with torch.no_grad():
        output = model(*(x.clone() for x in xs), *(args or ()))
    output = output if target is None else output[range(len(output)), target]
    torch.testing.assert_close(full.output, output.view(-1))
    return full


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first, **options):
        super().__init__()
        self.recurrent = kind(6, 5, 2, batch_first=batch_first, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)
        self.batch_first = batch_first

    def forward(self, x):
        y, _ = self.recurrent(x if self.batch_first else x.transpose(0, 1))
        return self.head(y.mean(1) if self.batch_first else y[-1])


@pytest.mark.parametrize("length", [4, 7], ids=["as_long_as_the_batch", "longer"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent(kind, batch_first, length):
    for options in ({}, {"bidirectional": True}):
        check(Recurrent(kind, batch_first, **options).double(), torch.randn(4, length, 6), target=[0, 1, 2, 0])


def test_output_that_is_a_view_of_hidden_memory_is_overwritten():
    # What einsum returns is a view of a product inside it, which the trace has not seen.
    w = torch.randn(5, 4, dtype=DOUBLE)

    def model(x):
        y = torch.einsum("ij,kj->ik", x, w)
        y += 1.5
        return y

    assert torch.einsum("ij,kj->ik", torch.randn(3, 4, dtype=DOUBLE), w)._base is not None
    assert list(check(model, torch.randn(3, 4), target=0).biases) == ["add"]


def test_hidden_states_of_an_lstm():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            _, (h, c) = self.recurrent(x)
            return self.head(h[-1] * c[-1])

    check(Model().double(), torch.randn(4, 7, 6), target=[0, 1, 2, 0])


def test_packed_sequences():
    # Packing leaves no batch dimension, so examples are taken one by one, each of its own length.
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
            return self.head(y.sum(1))

    lengths = torch.tensor([7, 3, 5, 2])
    check(Model().double(), torch.randn(4, 7, 6), target=[0, 1, 2, 0], args=(lengths,))


def test_recurrent_cells():
    # Each step's h is computed from its c: their gradients must not be counted into each other.
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.lstm, self.head = nn.GRUCell(6, 5), nn.LSTMCell(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            h, state = x.new_zeros(len(x), 5), None
            for step in range(x.shape[1]):
                h = self.gru(x[:, step], h)
                state = self.lstm(h, state)
            return self.head(state[0] + state[1].tanh())

    check(Model().double(), torch.randn(4, 3, 6), target=[0, 1, 2, 0])


class Attention(nn.Module):
    """Attention in one of the ways people write it, and a head on the mean."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.project, self.head = nn.Linear(6, 18), nn.Linear(6, 3)
        self.module = nn.MultiheadAttention(6, 2, batch_first=kind != "length_first")

    def forward(self, x, padding=None):
        n, length, _ = x.shape
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        if self.kind == "weights":
            y, weights = self.module(x, x, x, key_padding_mask=padding, average_attn_weights=False)
            return self.head(y.mean(1)) + weights.square().sum((1, 2, 3)).unsqueeze(1)
        if self.kind == "module":
            return self.head(self.module(x, x, x, key_padding_mask=padding, need_weights=False)[0].mean(1))
        if self.kind == "length_first":
            y = x.transpose(0, 1)
            return self.head(self.module(y, y, y, attn_mask=causal)[0].mean(0))
        if self.kind == "fused":
            q, k, v = self.project(x).view(n, length, 3, 2, 3).permute(2, 0, 3, 1, 4)
            return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)[:, -1])
        q, k, v = self.project(x).chunk(3, -1)
        scores = q @ k.mT / 6**0.5 if self.kind == "masked_fill" else torch.einsum("nik,njk->nij", q, k)
        if self.kind == "masked_fill":
            weights = scores.masked_fill(causal, float("-inf")).softmax(-1)
        elif self.kind == "where":
            weights = F.softmax(torch.where(causal, torch.tensor(-1e9, dtype=x.dtype), scores), dim=-1)
        else:
            weights = torch.softmax(scores + torch.zeros_like(scores).detach().masked_fill(causal, float("-inf")), -1)
        return self.head((weights @ v).mean(1))


@pytest.mark.parametrize("kind", ["module", "weights", "length_first", "fused", "masked_fill", "where", "added_mask"])
def test_attention(kind):
    check(Attention(kind).double(), torch.randn(4, 5, 6), target=[0, 1, 2, 0])


def test_padding_masks():
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[0, 3:] = padding[2, 4:] = True
    for kind in ("module", "weights"):
        check(Attention(kind).double(), torch.randn(4, 5, 6), target=[0, 1, 2, 0], args=(padding,))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder(norm_first, activation):
    layer = nn.TransformerEncoderLayer(6, 2, 12, activation=activation, norm_first=norm_first, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(30, 3)).double().eval()
    check(model, torch.randn(4, 5, 6), target=[0, 1, 2, 0])


def test_encoder_and_decoder_are_two_inputs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer, self.head = nn.Transformer(6, 2, 1, 1, 12, batch_first=True), nn.Linear(6, 3)

        def forward(self, source, target):
            return self.head(self.transformer(source, target).mean(1))

    check(Model().double().eval(), torch.randn(4, 5, 6), torch.randn(4, 3, 6), target=[0, 1, 2, 0])


class InPlace(nn.Module):
    """Operations that overwrite: activations, views, constant buffers, the input itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.scale, self.head = nn.Parameter(torch.randn(4, 1, 1)), nn.Linear(4, 3)

    def forward(self, x):
        x.sub_(0.5).div_(0.3)
        y = self.conv(x)
        y += self.scale
        F.relu(y, True)
        y = F.silu(y + 0.1, inplace=True)
        y = self.norm(y)
        z = self.conv(x)
        z *= y
        z = z.clone()
        z[:, 1] += 2.0
        z[:, :, 0] = 1.0
        z.clamp_(-1, 2).add_(y, alpha=0.3)
        buffer = torch.full_like(z, 0.7).detach()
        buffer[:, :2] = z[:, 2:]
        buffer[:, 2].copy_(z[:, 0])
        buffer.view(len(x), -1).mul_(2).add_(1)
        buffer[:, 0].sigmoid_()
        out = torch.empty_like(buffer).detach()
        torch.mul(buffer.detach(), 2.0, out=out)
        y = F.hardswish(self.conv(buffer[:, :3]), inplace=True)
        y -= buffer
        y.transpose_(2, 3).unsqueeze_(1).squeeze_(1)
        return self.head((y + out).mean((2, 3)))


def test_in_place():
    model = InPlace().double().eval()
    model.norm.running_mean.normal_()
    x = torch.randn(4, 3, 6, 6, dtype=DOUBLE)
    before = x.clone()
    check(model, x, target=[0, 1, 2, 0])
    assert torch.equal(x, before), "the model overwrote the user's input"


def test_writing_into_a_view_of_a_constant():
    def model(x):
        buffer = torch.full_like(x, 0.7).detach()
        buffer[:, 0].copy_(x[:, 0])
        return buffer.sum(1, keepdim=True).exp()

    check(model, torch.randn(3, 4), target=[0, 0, 0])


def test_parameters_in_every_role():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.bilinear, self.norm = nn.Linear(6, 6), nn.Bilinear(6, 6, 6), nn.LayerNorm(6)
            self.weighted = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
            self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
            self.token, self.slope = nn.Parameter(torch.randn(1, 1, 6)), nn.PReLU()
            self.position = nn.Embedding(7, 6)

        def forward(self, x):
            y = torch.cat([self.token.expand(len(x), -1, -1), x + self.position(torch.arange(x.shape[1]))], 1)
            y = self.slope(self.weighted(y)) + self.spectral(self.norm(y)) * self.linear(y).sigmoid()
            y = self.linear(self.bilinear(y, y.flip(1)))
            return torch.addmm(self.linear.bias, y[:, 0], self.linear.weight, beta=0.5)

    check(Model().double().eval(), torch.randn(4, 5, 6), target=[0, 1, 2, 3])


def test_arithmetic():
    def model(a, b):
        y = a * b / (1 + b**2) - 3 / (2 + a.abs()) + 2**a - (1 - a).rsqrt().square() + a.detach() * b + a.round()
        y = y + torch.maximum(y, torch.zeros((), dtype=y.dtype)) + torch.minimum(a, b) + a.clamp(min=-0.2)
        y = y + torch.logsumexp(y, -1, keepdim=True) + F.normalize(a, dim=-1) + y.std(-1, keepdim=True)
        y = y + torch.linalg.vector_norm(b, dim=-1, keepdim=True) + F.glu(torch.cat([a, b], -1)) + F.rms_norm(a, (6,))
        y = y + F.cosine_similarity(a, b, -1)[:, None] + torch.lerp(a, b, 0.3)
        y = y + torch.addcmul(a, b, b, value=0.2) + F.pad(a[:, :5], (1, 0), value=0.7) + F.threshold(b, 0.1, 0.2)
        y = y + torch.fft.rfft(a).abs().sum(-1, keepdim=True) + torch.cumprod(a, -1) + F.group_norm(b, 3)
        y = y + torch.linalg.inv(3 * torch.eye(6, dtype=a.dtype) + a[:, :, None] * a[:, None])[:, 0]
        y = y + torch.view_as_real(torch.view_as_complex(a.view(-1, 3, 2)) * (1 + 2j) + 1j).flatten(1)
        return y

    a = torch.rand(4, 6) * 0.5
    check(model, a, torch.randn(4, 6), target=[0, 1, 2, 3])


@pytest.mark.parametrize("function", [torch.exp, torch.sin, torch.tanh, torch.sigmoid, torch.sqrt, torch.log])
def test_complex_functions(function):
    # The real Jacobian of a holomorphic function is not symmetric.
    check(lambda x: function(torch.complex(x[:, :2], x[:, 2:])).real, torch.rand(3, 4) + 0.3, target=[0, 1, 0])
    check(lambda x: torch.fft.irfft(function(torch.fft.rfft(x) + 3)), torch.rand(3, 4), target=[0, 1, 2])


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u * torch.sigmoid(u) + 1

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        s = torch.sigmoid(u)
        return gradient * s * (1 + u * (1 - s))


def test_operations_outside_torch_functions():
    layer = nn.Conv2d(3, 4, 3).double()
    full = check(lambda x: F.relu(Swish.apply(layer(x)), True).sum((2, 3)), torch.randn(3, 3, 5, 5), target=[0, 1, 2])
    assert list(full.biases) == ["conv2d", "SwishBackward"]
    assert full.biases["SwishBackward"].shape == (3, 4, 3, 3)
    check(lambda x: torch.vmap(lambda a: (a.sin() + 1).sum((0, 1)))(x * 2), torch.randn(3, 3, 5, 5), target=[0, 1, 2])
    check(lambda x: torch.ops.aten.add.Tensor(torch.ops.aten.gelu.default(x), 1.0), torch.randn(3, 4), target=[0, 1, 2])
    check(
        lambda x: torch.utils.checkpoint.checkpoint(lambda a: a.sin() + 1, x * 2, use_reentrant=False),
        *(torch.randn(3, 4),),
        target=[0, 1, 2],
    )


def test_straight_through_is_complete_for_the_gradient_it_declares():
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            return u.round()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    x = torch.randn(3, 4, dtype=DOUBLE)
    full = check(lambda x: Round.apply(x * 1.0), x, target=[0, 1, 2])
    picked = torch.zeros_like(x)
    picked[[0, 1, 2], [0, 1, 2]] = 1.0
    torch.testing.assert_close(full.biases["RoundBackward"], (x.round() - x) * picked)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: nn.Sequential(nn.Identity(), m)])
def test_wrapped_models(wrap):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(36, 3)).double()
    check(wrap(model), torch.randn(3, 3, 5, 5), target=[0, 1, 2])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_distributed_data_parallel_is_unwrapped():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3)).double()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        full = check(nn.parallel.DistributedDataParallel(model), torch.randn(3, 4), target=[0, 1, 2])
    finally:
        torch.distributed.destroy_process_group()
    assert list(full.biases) == ["0:linear", "1:gelu", "2:linear"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_models():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(36, 3)).double()
    x = torch.randn(3, 3, 5, 5)
    expected = list(check(model, x, target=[0, 1, 2]).biases)
    eager = {"backend": "eager"}  # what is left out is the code generator, which needs a compiler
    assert list(check(torch.compile(model, **eager), x, target=[0, 1, 2]).biases) == expected
    model[0] = torch.compile(model[0], **eager)
    full = FullGrad(model).decompose(x.double(), [0, 1, 2])
    assert_complete(full)
    assert list(full.biases) == expected


def test_autocast():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(36, 3))

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    full = FullGrad(forward).decompose(torch.randn(3, 3, 5, 5), [0, 1, 2])
    assert float(full.gap().max()) < 1e-2
    assert all(term.dtype == torch.float32 for term in full.biases.values())


@pytest.mark.parametrize("fails", ["forward", "backward", "nothing"])
def test_nothing_is_left_behind(fails):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.recurrent = nn.Linear(4, 6), nn.GRU(6, 4, batch_first=True)

        def forward(self, x):
            y = self.recurrent(self.layer(x).unsqueeze(1))[0].squeeze(1)
            if fails == "forward":
                raise KeyError("in the model")
            if fails == "backward":
                y.register_hook(lambda gradient: (_ for _ in ()).throw(KeyError("in the model")))
            return y

    model = Failing()
    x = torch.randn(3, 4, requires_grad=True)
    x.grad = torch.ones_like(x)
    gradient = model.layer.weight.grad = torch.ones_like(model.layer.weight)
    state = torch.get_rng_state()
    if fails == "nothing":
        FullGrad(model).attribute(x, 1)
    else:
        with pytest.raises(KeyError, match="in the model"):
            FullGrad(model).attribute(x, 1)
    # Hooks, modes and backends are looked at after every test, in conftest.
    assert torch.equal(x.grad, torch.ones_like(x)) and x.requires_grad and x.grad_fn is None
    assert model.layer.weight.grad is gradient and torch.equal(gradient, torch.ones_like(gradient))
    assert all(p.requires_grad for p in model.parameters()) and model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not [name for name in vars(x) if name.startswith("_captum")]


def test_other_threads_are_left_alone():
    # A training loop elsewhere, with batch norm in training mode, while a model is being explained here.
    training, failures = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(), []

    def train():
        try:
            training(torch.randn(8, 4)).sum().backward()
        except Exception as error:
            failures.append(error)

    def model(x):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        return x.exp()

    full = FullGrad(model).decompose(torch.randn(2, 3), 1)
    assert not failures
    assert list(full.biases) == ["exp"]


def test_memory_is_given_back():
    activations = []

    def model(x):
        y = F.gelu(x * 2)
        activations.append(weakref.ref(y))
        return y

    FullGrad(model).attribute(torch.randn(2, 3), 1)
    gc.collect()
    assert activations[0]() is None


def test_remainders_are_given_back_though_the_model_keeps_an_activation(monkeypatch):
    kept, remainders, factors = [], [], Trace._factors

    def recording(*args):
        result = factors(*args)
        remainders.extend(weakref.ref(r) for r in result if r is not None)
        return result

    def model(x):
        kept.append(F.gelu(x * 2))
        return kept[-1]

    monkeypatch.setattr(Trace, "_factors", recording)
    FullGrad(model).attribute(torch.randn(2, 3), 1)
    gc.collect()
    assert remainders
    assert all(remainder() is None for remainder in remainders)


def test_runs_under_no_grad_and_inference_mode():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(3, 4)
    expected = FullGrad(model).attribute(x, 1)
    with torch.no_grad():
        torch.testing.assert_close(FullGrad(model).attribute(x, 1), expected)
    with torch.inference_mode():
        torch.testing.assert_close(FullGrad(model).attribute(x.clone(), 1), expected)
