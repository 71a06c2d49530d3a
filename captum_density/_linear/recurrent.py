"""Recurrent layers step by step, as their definition has them, so that each of their operations can get a rule.

The arguments are those of `torch.lstm`, `torch.gru`, `torch.rnn_tanh` and `torch.rnn_relu`, for padded sequences
(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first) and for packed ones (data,
batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RECURRENT"]

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor | None]], State]


def _lstm_cell(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    h, c = state
    w_x, w_h, b_x, b_h = weights[:4]
    i, f, g, o = (F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h)).chunk(4, 1)  # type: ignore[arg-type]
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if len(weights) == 4 else F.linear(h, weights[4])), c  # type: ignore[arg-type]


def _gru_cell(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    (h,) = state
    w_x, w_h, b_x, b_h = weights[:4]
    x_r, x_z, x_n = F.linear(x, w_x, b_x).chunk(3, 1)  # type: ignore[arg-type]
    h_r, h_z, h_n = F.linear(h, w_h, b_h).chunk(3, 1)  # type: ignore[arg-type]
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return ((1 - z) * n + z * h,)


def _rnn_cell(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
        w_x, w_h, b_x, b_h = weights[:4]
        return (activation(F.linear(x, w_x, b_x) + F.linear(state[0], w_h, b_h)),)  # type: ignore[arg-type]

    return cell


def _direction(cell: Cell, steps: list[Tensor], state: State, weights: Sequence[Tensor | None], reverse: bool) -> Any:
    """One layer in one direction: the output of every step, and the state at each row's own end.

    The rows of packed steps are sorted by length, so that a step has the first rows of the one before it.
    """
    initial, outputs, ended = state, list[Tensor](), list[State]()
    order = reversed(steps) if reverse else iter(steps)
    state = tuple(s[: len(steps[-1] if reverse else steps[0])] for s in initial)
    for x in order:
        rows = len(x)
        if rows < len(state[0]):
            ended.append(tuple(s[rows:] for s in state))
            state = tuple(s[:rows] for s in state)
        elif rows > len(state[0]):
            have = len(state[0])
            state = tuple(torch.cat([s, s0[have:rows]]) for s, s0 in zip(state, initial, strict=True))
        state = cell(x, state, weights)
        outputs.append(state[0])
    ended.append(state)
    final = tuple(torch.cat(list(parts)) for parts in zip(*reversed(ended), strict=True))
    return (outputs[::-1] if reverse else outputs), final


def _layers(
    cell: Cell, steps: list[Tensor], hx: State, params: Sequence[Tensor], has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    if dropout and train and num_layers > 1:
        raise NotImplementedError(
            "dropout between recurrent layers draws anew where they are opened; call model.eval()"
        )
    directions = 2 if bidirectional else 1
    count = len(params) // (num_layers * directions)
    finals = []
    for layer in range(num_layers):
        runs = []
        for direction in range(directions):
            at = layer * directions + direction
            weights: list[Tensor | None] = list(params[at * count : (at + 1) * count])
            if not has_biases:
                weights[2:2] = [None, None]
            outputs, final = _direction(cell, steps, tuple(h[at] for h in hx), weights, direction == 1)
            runs.append(outputs)
            finals.append(final)
        steps = [torch.cat(parts, 1) if directions == 2 else parts[0] for parts in zip(*runs, strict=True)]
    return steps, [torch.stack(parts) for parts in zip(*finals, strict=True)]


def _opened(cell: Cell, several: bool) -> Callable[..., Any]:
    def run(first: Tensor, second: Any, *rest: Any) -> Any:
        packed = isinstance(second, Tensor) and not second.is_floating_point()
        if packed:
            hx, params, has_biases, num_layers, dropout, train, bidirectional = rest
            steps = list(first.split(second.tolist()))
        else:
            hx, (params, has_biases, num_layers, dropout, train, bidirectional, batch_first) = second, rest
            steps = list(first.unbind(1 if batch_first else 0))
        state = tuple(hx) if several else (hx,)
        outputs, finals = _layers(cell, steps, state, params, has_biases, num_layers, dropout, train, bidirectional)
        return (torch.cat(outputs) if packed else torch.stack(outputs, 1 if batch_first else 0)), *finals

    return run


RECURRENT: dict[str, Callable[..., Any]] = {
    "lstm": _opened(_lstm_cell, True),
    "gru": _opened(_gru_cell, False),
    "rnn_tanh": _opened(_rnn_cell(torch.tanh), False),
    "rnn_relu": _opened(_rnn_cell(torch.relu), False),
}
