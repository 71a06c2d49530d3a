"""AttentionMapLoss: transfer between architectures, by where chosen layers are active and what moves that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from captum_density._model.copies import ModelOnCopies, Points, gradients_of
from captum_density._model.evaluation import grad_mode
from captum_density._model.modules import unwrap
from captum_density._model.precision import accumulation_dtype
from captum_density.losses._density_loss import Log, check_weight
from captum_density.losses._fooling import directions
from captum_density.losses._transfer import TransferLoss, as_rows

__all__ = ["AttentionMapLoss"]

Layer = str | nn.Module


class _Lesson(NamedTuple):
    """Of a layer of the teacher: its map (N, 1, *grid), where its largest element is (N,), and that one's gradient.

    The gradient is (1, N, ...) for each input, or None where it is not asked for.
    """

    map: Tensor
    largest: Tensor
    gradient: Points | None


class AttentionMapLoss(TransferLoss):
    r"""Squared error between attention maps of chosen layers of a student and a teacher, and of their gradients.

    .. math:: \frac{1}{N} \sum_n \sum_l \left\| \frac{A_T^l}{\|A_T^l\|} - \frac{A_S^l}{\|A_S^l\|} \right\|^2
        + \lambda \left\| \frac{\nabla_x A_{T, i}^l}{\|\nabla_x A_{T, i}^l\|} - \frac{\nabla_x A_{S, i}^l}
        {\|\nabla_x A_{S, i}^l\|} \right\|^2, \qquad A = \sum_c z_c^2, \quad i = \arg\max A_T^l

    z are a layer's activations, c its channels, and l a pair of layers. As channels are summed, the two may have other
    numbers of them; where their grids differ, the student's map is averaged over areas of the teacher's grid, or
    repeated where that is finer. The gradient is of one element only, the place where the teacher's map is largest, as
    the whole Jacobian of a map is too dear. The outputs may differ, too: they are not compared.

    With lambda > 0 every operation up to the layers must be differentiable twice.

    A pair counts between 0 and 2 + 4 lambda. A map or gradient that is zero in one of the models counts as 1, and
    trains nothing.

    Args:
        teacher: As `JacobianMatchingLoss`; a module, or a function if its layers are given as modules.
        layers: Student's layer to teacher's, a mapping or pairs; each a name, as in `named_modules()`, or the module
            itself. Their outputs must be (N, C, ...) with one to three dimensions of a grid.
        jacobian_weight: lambda, at least 0; with 0 no gradients are taken.

    Attributes:
        map_distance: The first term, of the last call, detached; None before.
        jacobian_distance: The second, without lambda; None where that is 0.

    Raises:
        TypeError: If the teacher cannot be called, or layers are neither a mapping nor pairs of names and modules.
        ValueError: If there are no layers, or lambda is out of range; from a call, if a layer is not in its model, does
            not run or runs more than once, has no grid, or does not depend on the inputs, and where `forward` says so.

    References:
        S. Srinivas and F. Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv:1803.00443, on
        transfer learning; S. Zagoruyko and N. Komodakis, "Paying More Attention to Attention", ICLR 2017,
        arXiv:1612.03928 (attention maps).

    Example:
        >>> import torch
        >>> teacher = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Softplus())
        >>> student = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 5), torch.nn.Softplus())
        >>> attention = AttentionMapLoss(teacher, {"1": "1"})
        >>> loss = attention(student, torch.randn(4, 1, 8, 8))
        >>> bool(torch.isclose(loss, attention.map_distance + attention.jacobian_distance))
        True
    """

    map_distance: Tensor | None
    jacobian_distance: Tensor | None

    def __init__(
        self,
        teacher: Callable[..., Any],
        layers: Mapping[Layer, Layer] | Sequence[tuple[Layer, Layer]],
        jacobian_weight: float = 1.0,
    ) -> None:
        super().__init__(teacher, second_derivatives=True)
        check_weight("jacobian_weight", jacobian_weight)
        self._layers = _pairs(layers)  # a tuple, so that the modules are not submodules
        self.jacobian_weight = jacobian_weight
        self.map_distance = self.jacobian_distance = None

    def _lesson(self, teacher: ModelOnCopies) -> list[_Lesson]:
        with torch.enable_grad():
            leaves, maps = self._maps(teacher, 1)
            lessons = []
            for attention in maps:
                largest = attention.detach().flatten(1).argmax(1)
                gradient = _gradient(attention, largest, leaves, False) if self.jacobian_weight else None
                lessons.append(_Lesson(attention.detach(), largest, gradient))
        return lessons

    def _compare(self, student: ModelOnCopies, lesson: list[_Lesson], create_graph: bool) -> tuple[Tensor, Log]:
        dtype = accumulation_dtype(*student.inputs)
        of_maps, of_gradients = [], []
        with grad_mode(create_graph or self.jacobian_weight > 0):
            leaves, maps = self._maps(student, 0)
            for (theirs, largest, their_gradients), attention in zip(lesson, maps, strict=True):
                ours = _on_grid(attention, theirs.shape[2:])
                of_maps.append(_distance((theirs,), (ours,), dtype))
                if their_gradients is not None:
                    gradients = _gradient(ours, largest, leaves, create_graph)
                    of_gradients.append(_distance(as_rows(their_gradients), as_rows(gradients), dtype))
        log = {"map_distance": torch.stack(of_maps).sum()}
        loss = log["map_distance"]
        if of_gradients:
            log["jacobian_distance"] = torch.stack(of_gradients).sum()
            loss = loss + self.jacobian_weight * log["jacobian_distance"]
        return loss, log

    def _maps(self, model: ModelOnCopies, side: int) -> tuple[Points, list[Tensor]]:
        """The inputs (N, ...) of a run, and the attention map (N, 1, *grid) of each of the layers on a side."""
        leaves = tuple(x.clone().requires_grad_(torch.is_grad_enabled()) for x in model.inputs)
        layers = [_module(model.forward_func, pair[side], ("student", "teacher")[side]) for pair in self._layers]
        with _recorded(layers) as runs:
            model.outputs(tuple(leaf.clone()[None] for leaf in leaves))  # which a model may write to
        return leaves, [
            _attention(outputs, pair[side], model.n) for outputs, pair in zip(runs, self._layers, strict=True)
        ]

    def extra_repr(self) -> str:
        """What `print` shows."""
        names = ", ".join(f"{_name(student)} from {_name(teacher)}" for student, teacher in self._layers)
        return f"{names}, jacobian_weight={self.jacobian_weight}"


def _gradient(maps: Tensor, place: Tensor, leaves: Points, create_graph: bool) -> Points:
    element = maps.flatten(1).gather(1, place[:, None])
    gradients = gradients_of(element, leaves, create_graph, torch.ones_like(element))
    return tuple(g[None] for g in gradients)


def _pairs(layers: Any) -> tuple[tuple[Layer, Layer], ...]:
    pairs = tuple(layers.items()) if isinstance(layers, Mapping) else layers
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise TypeError(
            "layers must be a mapping of the student's layers to the teacher's, or pairs of them, but is "
            f"{type(pairs).__name__}"
        )
    if not pairs:
        raise ValueError("layers must hold at least one pair")
    for pair in pairs:
        if not (
            isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(p, str | nn.Module) for p in pair)
        ):
            raise TypeError(f"layers must be pairs (student's, teacher's) of names or modules, but one is {pair!r}")
    return tuple((student, teacher) for student, teacher in pairs)


def _name(layer: Layer) -> str:
    return repr(layer) if isinstance(layer, str) else type(layer).__name__


def _module(model: Callable[..., Any], layer: Layer, whose: str) -> nn.Module:
    model = unwrap(model)
    if isinstance(layer, nn.Module):
        if isinstance(model, nn.Module) and all(layer is not module for module in model.modules()):
            raise ValueError(f"the {whose} has no such module as the {_name(layer)} given; is it another copy's?")
        return layer
    if not isinstance(model, nn.Module):
        raise ValueError(f"the {whose} is a function, in which {layer!r} cannot be looked up; give the module itself")
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"the {whose} has no layer {layer!r}; it has {', '.join(map(repr, list(modules)[1:]))}")
    return modules[layer]


@contextmanager
def _recorded(layers: list[nn.Module]) -> Iterator[list[list[Any]]]:
    """Within, the outputs of each layer's runs."""
    runs: list[list[Any]] = [[] for _ in layers]
    with ExitStack() as stack:
        for layer, outputs in zip(layers, runs, strict=True):

            def keep(module: nn.Module, args: Any, output: Any, outputs: list[Any] = outputs) -> None:
                # A copy: the next layer may be an in-place ReLU.
                outputs.append(output.clone() if isinstance(output, Tensor) else output)

            stack.callback(layer.register_forward_hook(keep).remove)
        yield runs


def _attention(outputs: list[Any], layer: Layer, n: int) -> Tensor:
    """(N, 1, *grid), the squares summed over channels."""
    if len(outputs) != 1:
        times = f"ran {len(outputs)} times" if outputs else "did not run"
        raise ValueError(f"layer {_name(layer)} {times} in the model's forward pass; choose one that runs once")
    (output,) = outputs
    if not isinstance(output, Tensor) or not 3 <= output.ndim <= 5 or len(output) != n:
        received = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"layer {_name(layer)} must return (N, C, ...) for {n} examples, with one to three dimensions of a grid, "
            f"but returned {received}; choose a convolution or what follows it"
        )
    return (output.to(accumulation_dtype(output)) ** 2).sum(1, keepdim=True)


def _on_grid(maps: Tensor, grid: torch.Size) -> Tensor:
    if maps.ndim - 2 != len(grid):
        raise ValueError(
            f"the student's grid {tuple(maps.shape[2:])} and the teacher's {tuple(grid)} must have as many dimensions; "
            "choose layers that have"
        )
    return maps if maps.shape[2:] == grid else interpolate(maps, size=list(grid), mode="area")


def _distance(theirs: tuple[Tensor, ...], ours: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    return ((directions(theirs, dtype) - directions(ours, dtype)) ** 2).sum(1).mean()
