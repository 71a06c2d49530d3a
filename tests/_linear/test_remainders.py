"""The ways to r that the table of operations names, each against the definition."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from captum_density._linear.operations import _TABLE, row
from captum_density._linear.remainders import DERIVATIVE
from captum_density._linear.trace import Trace
from captum_density._model.calls import Call

DOUBLE = torch.float64

# One call for each shortcut, and one for each spelling that has its own branch.
SHORTCUTS = [
    *(lambda u, v, c: F.linear(u, c, c[0]), lambda u, v, c: F.conv1d(u[None], c[:, :, None], c[0])),
    *(lambda u, v, c: F.conv1d(u[:, None], c[:1, None, :3].transpose(0, 1), bias=c[0, :1]),),
    *(lambda u, v, c: F.conv_transpose1d(u[None], c[:, :2, None], c[0, :2]), lambda u, v, c: u + c),
    *(lambda u, v, c: u + 0.1, lambda u, v, c: 3 - u, lambda u, v, c: u - v, lambda u, v, c: torch.add(u, v, alpha=2)),
    *(lambda u, v, c: torch.sub(c, u, alpha=2), lambda u, v, c: torch.rsub(u, c, alpha=2), lambda u, v, c: c[0] + u),
    *(lambda u, v, c: torch.rsub(c, u, alpha=2), lambda u, v, c: u.clone().sub_(c), lambda u, v, c: c.clone().add_(u)),
    *(lambda u, v, c: u.sigmoid(), lambda u, v, c: u.tanh(), lambda u, v, c: F.hardswish(u), lambda u, v, c: F.gelu(u)),
    *(lambda u, v, c: F.hardsigmoid(u), lambda u, v, c: F.softmax(u, 0, dtype=torch.float32)),
    *(lambda u, v, c: u * v, lambda u, v, c: u * u, lambda u, v, c: u * c, lambda u, v, c: u * 2),
    *(lambda u, v, c: u / v, lambda u, v, c: u / c, lambda u, v, c: 2 / u, lambda u, v, c: u / 2),
    *(lambda u, v, c: c / u, lambda u, v, c: torch.div(u, v, rounding_mode="floor")),
    *(lambda u, v, c: u @ v, lambda u, v, c: u @ c, lambda u, v, c: torch.einsum("ij,jk,kl->il", u, v, u)),
    *(lambda u, v, c: u**2, lambda u, v, c: u**3.5, lambda u, v, c: u**0, lambda u, v, c: u**v),
    *(lambda u, v, c: u**-2, lambda u, v, c: u**-0.5, lambda u, v, c: torch.float_power(u, -3), lambda u, v, c: u**-c),
    *(lambda u, v, c: torch.pow(u, exponent=-1.5), lambda u, v, c: torch.pow(2.0, -u), lambda u, v, c: c**-u),
    *(lambda u, v, c: 2**u, lambda u, v, c: u.sqrt(), lambda u, v, c: u.rsqrt(), lambda u, v, c: u.reciprocal()),
    *(lambda u, v, c: torch.cat([u, c]), lambda u, v, c: torch.cat([u, v], 1), lambda u, v, c: torch.stack([c, u], 1)),
    *(lambda u, v, c: torch.where(u > v, u, c), lambda u, v, c: torch.where(u > v, u, 2.0)),
    *(lambda u, v, c: u.masked_fill(v > u, 3.0), lambda u, v, c: u.masked_fill(v > u, 0.0)),
    *(lambda u, v, c: F.pad(u, (1, 1)), lambda u, v, c: F.pad(u, (1, 1), value=2.0)),
    *(lambda u, v, c: F.pad(u[None], (1, 1), mode="reflect"), lambda u, v, c: torch.maximum(u, v)),
    *(lambda u, v, c: torch.maximum(u, c), lambda u, v, c: torch.max(u, c), lambda u, v, c: torch.max(u, v)),
    *(lambda u, v, c: torch.max(u, 1)[0], lambda u, v, c: u.min(), lambda u, v, c: torch.relu(u)),
    *(lambda u, v, c: F.leaky_relu(u - 1), lambda u, v, c: F.prelu(u - 1, c[0]), lambda u, v, c: F.prelu(u - 1, v[0])),
    *(lambda u, v, c: u.index_select(0, torch.tensor([1, 0])), lambda u, v, c: u.gather(1, torch.tensor([[1], [0]]))),
    *(lambda u, v, c: u.index_add(0, torch.tensor([1]), c[:1]), lambda u, v, c: u.scatter(0, torch.tensor([[1]]), 2.0)),
    *(lambda u, v, c: F.batch_norm(u, c[0], c[1].abs() + 1, c[2], c[3]), lambda u, v, c: F.batch_norm(u, c[0], c[1])),
    *(lambda u, v, c: F.softmax(u, 1), lambda u, v, c: u.softmax(0), lambda u, v, c: F.gelu(u, approximate="tanh")),
    *(lambda u, v, c: F.silu(u), lambda u, v, c: F.softplus(u, beta=2), lambda u, v, c: u.clamp(c.min(), 1.0)),
    *(lambda u, v, c: u.clamp(min=v), lambda u, v, c: u.exp(), lambda u, v, c: u.log1p(), lambda u, v, c: u.mean(0)),
    *(lambda u, v, c: u.T, lambda u, v, c: u.mT, lambda u, v, c: u[..., None, 1]),
    *(lambda u, v, c: F.interpolate(u[None, None], scale_factor=2, mode="bilinear"), lambda u, v, c: u.roll(1, 0)),
]


@pytest.mark.parametrize("function", SHORTCUTS, ids=range(len(SHORTCUTS)))
def test_shortcuts_equal_the_derivative(function):
    """Each way to r against y - jvp(op, u, u), the definition, for every call that a function makes."""
    u, v = torch.rand(2, 4, 4, dtype=DOUBLE) + 0.5
    c = torch.randn(4, 4, dtype=DOUBLE).abs() + 0.3
    seen = []

    class ComparingTrace(Trace):
        def _factors(self, remainder, call, outputs):
            factors = super()._factors(remainder, call, outputs)
            for r, e, y in zip(factors, super()._factors(DERIVATIVE, call, outputs), outputs, strict=True):
                if y.requires_grad:
                    torch.testing.assert_close(
                        torch.zeros_like(e) if r is None else r.expand_as(e), e, rtol=1e-12, atol=1e-12
                    )
            seen.append(call.name)
            return factors

    trace = ComparingTrace()
    tracked = trace.track([t.clone().requires_grad_() for t in (u, v)])
    with trace:
        function(*tracked, c)
    assert seen


def test_no_operation_has_two_rows():
    names = [name for *_, names in _TABLE for name in names.split()]
    assert len(names) == len(set(names))


def test_an_unknown_operation_goes_through_its_derivative():
    u = torch.rand(3, requires_grad=True)
    call = Call(torch.special.i0, (u,), {}, [u])
    assert row(call).remainder(call) is DERIVATIVE


# Forward mode, on loading, scripts something.
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_recurrent_kernels_are_run_again_in_their_plain_form():
    # float32, where PyTorch takes a fused kernel on the CPU, which has no forward-mode derivative.
    recurrent, x, state = nn.LSTM(4, 5), torch.randn(3, 2, 4), torch.zeros(1, 2, 5)
    args = (x, (state, state), recurrent._flat_weights, True, 1, 0.0, False, False, False)
    with forward_ad.dual_level():
        output = Call(torch.lstm, args, {}, [x]).evaluate(lambda t: forward_ad.make_dual(t, torch.ones_like(t)))[0]
        assert forward_ad.unpack_dual(output).tangent is not None
