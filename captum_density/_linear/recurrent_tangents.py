"""Remainders of recurrent layers: y - sum_j J_j u_j, of which the sum is a linear recurrence of its own.

The tangent of a layer's state at a step is linear in that of the step before::

    RNN     dh = s (W_x dx + W_h dh'),                                   s the slope of its activation
    LSTM    dc = f dc' + g i^ da_i + c' f^ da_f + i g^ da_g,             da = W_x dx + W_h dh'
            dh = o (1 - tanh(c)^2) dc + tanh(c) o^ da_o
    GRU     dh = z dh' + (h' - n) z^ da_z + (1 - z) n^ (da_n + r W_hn dh' + (W_hn h' + b_hn) r^ da_r)

with gates i, f, g, o and r, z, n, hatted for the slope of their activation, and primes for the step before. All that
does not depend on tangents is computed for all steps at once, as the states are known from the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._linear.remainders import DERIVATIVE, Remainder
from captum_density._model.calls import Call

__all__ = ["recurrent"]

_PRECISE = (torch.float32, torch.float64)

# Of (x, dx, h, states, tangents of states, weights) of one layer in one direction, steps first: its input, its output,
# and where it begins; to the tangents of its output, and of c.
Tangents = Callable[
    [Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Any]], tuple[Tensor, Tensor | None]
]


def _before(first: Tensor, steps: Tensor) -> Tensor:
    """The states of the steps before, of which the first is given."""
    return torch.cat([first.unsqueeze(0), steps[:-1]])


def _steps(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(t.unbind(0) for t in tensors), strict=True)


def _rnn(slope: Callable[[Tensor], Tensor]) -> Tangents:
    def tangents(
        x: Tensor, dx: Tensor, h: Tensor, states: Sequence[Tensor], starts: Sequence[Tensor],
        weights: Sequence[Any],
    ) -> tuple[Tensor, None]:  # fmt: skip
        (dh,), (w_x, w_h, *_) = starts, weights
        slopes = slope(h)
        result = F.linear(dx, w_x) * slopes
        for out, s in _steps(result, slopes):
            dh = out.addcmul_(s, dh @ w_h.T)
        return result, None

    return tangents


def _lstm(
    x: Tensor, dx: Tensor, h: Tensor, states: Sequence[Tensor], starts: Sequence[Tensor],
    weights: Sequence[Any],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (h0, c0), (dh, dc), (w_x, w_h, b_x, b_h) = states, starts, weights
    gates = F.linear(x, w_x, b_x) + F.linear(_before(h0, h), w_h, b_h)
    i, f, g, o = gates.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cells, c = i * g, c0
    for out, f_t in _steps(cells, f):
        c = out.addcmul_(f_t, c)
    top = cells.tanh()
    slopes = torch.cat([g * i * (1 - i), _before(c0, cells) * f * (1 - f), i * (1 - g * g), top * o * (1 - o)], -1)
    through = o * (1 - top * top)
    driven = (F.linear(dx, w_x) * slopes).chunk(4, -1)
    result, of_cells = driven[3].clone(), driven[0] + driven[1] + driven[2]
    change = torch.empty_like(slopes[0])
    of_i, of_f, of_g, of_o = change.chunk(4, -1)
    back = w_h.T
    for dh_t, dc_t, s, f_t, through_t in _steps(result, of_cells, slopes, f, through):
        torch.mm(dh, back, out=change).mul_(s)
        dc = dc_t.addcmul_(f_t, dc).add_(of_i).add_(of_f).add_(of_g)
        dh = dh_t.addcmul_(through_t, dc).add_(of_o)
    return result, of_cells


def _gru(
    x: Tensor, dx: Tensor, h: Tensor, states: Sequence[Tensor], starts: Sequence[Tensor],
    weights: Sequence[Any],
) -> tuple[Tensor, None]:  # fmt: skip
    (h0,), (dh,), (w_x, w_h, b_x, b_h) = states, starts, weights
    before = _before(h0, h)
    x_r, x_z, x_n = F.linear(x, w_x, b_x).chunk(3, -1)
    h_r, h_z, h_n = F.linear(before, w_h, b_h).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    of_n = (1 - z) * (1 - n * n)
    of_r, of_z = of_n * h_n * r * (1 - r), (before - n) * z * (1 - z)
    slopes = torch.cat([of_r, of_z, of_n * r], -1)
    d_r, d_z, d_n = F.linear(dx, w_x).chunk(3, -1)
    result = of_r * d_r + of_z * d_z + of_n * d_n
    change = torch.empty_like(slopes[0])
    parts = change.chunk(3, -1)
    back = w_h.T
    for dh_t, s, z_t in _steps(result, slopes, z):
        torch.mm(dh, back, out=change).mul_(s)
        dh = dh_t.addcmul_(z_t, dh).add_(parts[0]).add_(parts[1]).add_(parts[2])
    return result, None


_TANGENTS: dict[str, Tangents] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(lambda h: 1 - h * h),
    "rnn_relu": _rnn(lambda h: (h > 0).to(h.dtype)),
}


class _Recurrence(Remainder):
    related: ClassVar[bool] = True

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        x, hx, params, has_biases, num_layers, _, _, bidirectional, batch_first = call.args
        states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
        active = [call.is_activation(t) for t in (x, *states)]
        directions = 1 + bidirectional
        count = len(params) // (num_layers * directions)
        projected = count != (4 if has_biases else 2)
        if create_graph or projected or sum(active) != len(call.activations) or x.dtype not in _PRECISE:
            return DERIVATIVE.of(call, outputs, create_graph)
        x, y, *states = (t.detach() for t in (x, outputs[0], *states))
        x, y = (t.transpose(0, 1) if batch_first else t for t in (x, y))
        dx = x if active[0] else torch.zeros_like(x)
        starts = [s if a else torch.zeros_like(s) for s, a in zip(states, active[1:], strict=True)]
        ends: list[list[Tensor]] = [[] for _ in states]
        for layer in range(num_layers):
            own = slice(layer * directions, (layer + 1) * directions)
            weights = params[own.start * count : own.stop * count]
            h = y  # which only the last layer shows
            if layer < num_layers - 1:
                begin = tuple(s[own] for s in states) if len(states) > 1 else states[0][own]
                h, *_ = call.func(x, begin, weights, has_biases, 1, 0.0, False, bidirectional, False)
            tangents = []
            for d, part in enumerate(h.chunk(directions, -1)):
                at, mine = own.start + d, [*weights[d * count : (d + 1) * count], None, None][:4]
                u, du, v = (t.flip(0) if d else t for t in (x, dx, part))
                dh, dc = _TANGENTS[call.name](u, du, v, [s[at] for s in states], [s[at] for s in starts], mine)
                tangents.append(dh.flip(0) if d else dh)
                for end, tangent in zip(ends, (dh, dc), strict=False):
                    end.append(tangent[-1])  # type: ignore[index]
            x, dx = h, torch.cat(tangents, -1)
        products = [dx.transpose(0, 1) if batch_first else dx, *map(torch.stack, ends)]
        return [t.detach() - product for t, product in zip(outputs, products, strict=True)]


_RECURRENCE = _Recurrence()


def recurrent(call: Call) -> Remainder:
    """A recurrent layer over padded sequences, without dropout."""
    padded = len(call.args) == 9 and isinstance(call.args[3], bool)
    return _RECURRENCE if padded and not (call.args[5] and call.args[6]) else DERIVATIVE
