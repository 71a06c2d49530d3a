"""FullGrad of a layer: what of f(x) the layer's tensors carry, what comes after them, and what goes around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from captum.attr import GradientAttribution, LayerGradientXActivation, NeuronAttribution
from torch import Tensor, nn

from captum_density._linear.maps import AllTerms, SaliencyMaps, SignedMaps
from captum_density._linear.sweep import Reduction, Sweep, Term, per_example, sweep
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    log_usage,
    run_forward,
    select_neuron,
)
from captum_density._model.modules import ModuleStack, unwrap
from captum_density._model.validation import check_model
from captum_density.attr._common import (
    check_placed,
    check_share,
    delta,
    positions,
    refuse_sharded,
    warn_of_places,
    warn_of_unreached,
    without_floor,
)
from captum_density.attr._full_grad import FullGrad
from captum_density.attr._full_gradients import LayerFullGradients
from captum_density.attr._layer import (
    Cut,
    check_layers,
    floats_in,
    hook,
    layers_of,
    refuse_grad_kwargs,
    unclear,
    unwrapped,
)
from captum_density.attr._repr import given, shown

__all__ = ["LayerFullGrad", "NeuronFullGrad"]

_NO_DELTA = "the saliency map has no convergence delta: it is not a sum; use LayerFullGrad(model, layer, complete=True)"
_WORDS = {"name": "LayerFullGrad(model, layer)", "on": "the layer's tensors"}

R = TypeVar("R")


class _PastLayer(Generic[R]):
    """A reduction of the terms that a layer's tensors have part in; the others' sums by name, beside its result.

    Args:
        reduction: Of the former.
        placed: How many tensors the layer has.
        beside: Names of what is beside them.
    """

    def __init__(self, reduction: Callable[[], Reduction[R]], placed: int, beside: Sequence[str]) -> None:
        self._inner, self._placed, self._beside = reduction(), placed, beside
        self._around: dict[str, Tensor] = {}
        self.together = self._inner.together

    def add(self, term: Term) -> Tensor:
        if not term.spread.sources or min(term.spread.sources) < self._placed:
            return self._inner.add(term)
        sums = per_example(term.values)
        self._around[term.name] = term.summed(sums)
        return sums

    def result(self, products: list[Tensor], dims: Sequence[Sequence[int]]) -> tuple[R, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}
        for name, product in zip(self._beside, products[self._placed :], strict=True):
            inputs[name] = inputs[name] + per_example(product) if name in inputs else per_example(product)
        return self._inner.result(products[: self._placed], dims), inputs | dict(reversed(self._around.items()))

    def join(self, results: list[tuple[R, dict[str, Tensor]]]) -> tuple[R, dict[str, Tensor]]:
        rows = [around for _, around in results]
        names = dict.fromkeys(name for row in rows for name in row)
        around: dict[str, Tensor] = {}
        for name in names:  # an example may not meet an operation
            zero = next(row[name] for row in rows if name in row).new_zeros(1)
            around[name] = torch.cat([row.get(name, zero) for row in rows])
        return self._inner.join([inner for inner, _ in results]), around


class LayerFullGrad(LayerGradientXActivation):
    r"""Full-gradient attribution to what a layer returns, or takes: where `LayerGradientXActivation` stands.

    With z for the layer's tensors, cut out of the model and put back as inputs of their own,

    .. math:: f(x) = \langle \nabla_z f, z \rangle + \sum_{\text{after}} \langle \nabla_y f, r \rangle + \text{around}

    where the first sum is gradient times activation, the second is over the operations y that read something made of z,
    and what goes around is made of the inputs alone, past the layer: skip connections, other branches.

    Args:
        forward_func: As `FullGrad`'s `model`. Token ids may be its inputs, where the layer is an embedding or after it.
        layer: A module of the model, or a list of modules, each of which is explained by itself. It must run once in a
            pass. Where it returns a tuple or a record, its floating-point tensors are meant, in order.
        device_ids: As Captum's; DataParallel is unwrapped, so that nothing depends on it.
        complete: False for the paper's saliency map (equation 4), >= 0; True for signed attributions that sum to f(x)
            but for what goes around the layer.
        layout: As `FullGrad`, of the layer's tensors.
        min_placed: As `FullGrad`, on the layer's tensors.
        keep_floor: As `FullGrad`.

    Raises:
        TypeError: If `forward_func` is not callable, or the layer no module.
        ValueError: If `min_placed` is not in [0, 1].

    References:
        S. Srinivas and F. Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
        arXiv:1905.00780.

    Example:
        Of token ids, by what their embeddings carry:

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.GELU(), nn.Flatten(), nn.Linear(12, 2))
        >>> ids = torch.tensor([[1, 5, 2], [7, 0, 3]])
        >>> attributions = LayerFullGrad(model, model[0], complete=True).attribute(ids, target=1)
        >>> attributions.shape, torch.allclose(attributions.sum((1, 2)), model(ids)[:, 1], atol=1e-5)
        (torch.Size([2, 3, 4]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | list[nn.Module],
        device_ids: list[int] | None = None,
        *,
        complete: bool = False,
        layout: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        min_placed: float | None = None,
        keep_floor: bool = False,
    ) -> None:
        check_model(forward_func)
        check_layers(layer)
        check_share(min_placed)
        super().__init__(forward_func, layer, device_ids)
        self.complete, self.layout, self.min_placed, self.keep_floor = complete, layout, min_placed, keep_floor

    def __repr__(self) -> str:
        settings = given(layout=self.layout, min_placed=self.min_placed, keep_floor=self.keep_floor)
        return shown(self, self.forward_func, self.layer, complete=self.complete, **settings)

    def has_convergence_delta(self) -> bool:
        """As `FullGrad`."""
        return self.complete

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: Mapping[str, Any] | None = None,
        *,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Attributions of the shapes of the layer's tensors.

        Args:
            inputs: Tensor (N, ...) or tuple of such, floating-point or integer: token ids, for example.
            target: As in `FullGrad.attribute`.
            additional_forward_args: As in `FullGrad.attribute`.
            attribute_to_layer_input: Whether what the layer takes is explained, not what it returns: the floating-point
                tensors among its positional arguments, or the first that is passed by name. What else reads the same
                tensors goes around, where Captum's gradient holds it, too.
            grad_kwargs: As Captum's, of which `{"create_graph": True}` makes the result differentiable.
            return_convergence_delta: Also return the sum of the attributions minus f(x), (N,), a list of such for a
                list of layers. Only if `complete`. It is what goes around the layer, with a minus sign.

        Returns:
            As Captum's: a tensor, (N, ...) where examples come first in the layer's, or a tuple where it has several; a
            list of these for a list of layers. Of the tensors' shapes and dtypes, but with a row for each of several
            examples where the layer has one for all. To be read as those of `FullGrad.attribute`, with the layer's
            tensors in place of the inputs: with `complete=True` a bias term after the layer lies where its elements do,
            and evenly where it has no place.

        Warns:
            UserWarning: As `FullGrad.attribute`.

        Raises:
            ValueError: As `FullGrad.attribute`; a layer that does not run, or runs several times in one pass; one whose
                tensor is the same for all examples and cannot be given a row for each, or is overwritten together with
                another that is read later.
            TypeError: As `FullGrad.attribute`, but for integer inputs.
            RuntimeError: As `FullGrad.attribute`.
            NotImplementedError: As `FullGrad.attribute`.
        """
        if return_convergence_delta and not self.complete:
            raise ValueError(_NO_DELTA)
        refuse_grad_kwargs(grad_kwargs, ["create_graph"])
        create_graph = bool((grad_kwargs or {}).get("create_graph"))
        kind = SignedMaps if self.complete else SaliencyMaps
        reduction = partial(kind, self.min_placed is not None)
        results = []
        for layer in layers_of(self):
            cut = Cut(self.forward_func, [layer], attribute_to_layer_input, inputs, additional_forward_args)
            maps, values = self._sweep(cut, target, reduction, create_graph)
            found, _ = maps.result
            if found.placement is not None:
                check_placed(found.placement, self.min_placed, _WORDS["on"])
            if self.complete and found.placement is not None:
                warn_of_places(found.placement, **_WORDS)
            else:
                warn_of_unreached(found, **_WORDS)
            parts = without_floor(found.maps, self.complete or self.keep_floor)
            parts = tuple(m.to(z.dtype) for m, z in zip(parts, values, strict=True))
            results.append((cut.in_form(parts), delta(parts, maps.output) if return_convergence_delta else None))
        attributions, deltas = [a for a, _ in results], [d for _, d in results]
        if not isinstance(self.layer, list):
            return (attributions[0], deltas[0]) if return_convergence_delta else attributions[0]
        return (attributions, deltas) if return_convergence_delta else attributions

    @takes_arrays
    def decompose(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        create_graph: bool = False,
    ) -> Any:
        """Every term of f(x), by name: the layer's, what comes after, what goes around.

        Args:
            inputs: As in `attribute`.
            target: As in `attribute`.
            additional_forward_args: As in `attribute`.
            attribute_to_layer_input: As in `attribute`.
            create_graph: Whether the terms are differentiable.

        Returns:
            `LayerFullGradients`, or a list of them for a list of layers; half-precision terms in float32.

        Raises:
            RuntimeError: As in `attribute`.

        Example:
            A layer with a skip connection around it:

            >>> import torch
            >>> double, halve = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
            >>> for layer, weight in (double, 2.0), (halve, 0.5):
            ...     _ = torch.nn.init.constant_(layer.weight, weight), torch.nn.init.constant_(layer.bias, 3.0)
            >>> LayerFullGrad(lambda x: halve(double(x) + x), double).decompose(torch.tensor([[10.0]]))
            LayerFullGradients of 1 examples; sum per term, mean over examples:
              layer 0                 11.5  (1, 1)
              linear#2                   3  (1, 1)
              around input 0             5  (1,)
              total                   19.5  output 19.5
        """
        results = []
        for layer in layers_of(self):
            cut = Cut(self.forward_func, [layer], attribute_to_layer_input, inputs, additional_forward_args)
            terms, _ = self._sweep(cut, target, AllTerms, create_graph)
            after, around = terms.result
            check_placed(after.placement, self.min_placed, _WORDS["on"])
            unplaced = after.placement.unplaced_size()
            layer_terms = tuple(after.products)
            results.append(LayerFullGradients(terms.output, layer_terms, after.biases, around, unplaced))
        return results if isinstance(self.layer, list) else results[0]

    @takes_arrays
    def compute_convergence_delta(
        self,
        attributions: Any,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """Sum of the attributions of one layer minus f(x), (N,); there is no baseline.

        Raises:
            ValueError: For the saliency map, which sums to nothing in particular.
        """
        if not self.complete:
            raise ValueError(_NO_DELTA)
        cut = Cut(self.forward_func, [], False, inputs, additional_forward_args)
        return delta(attributions, cut.output(target))

    def _sweep(
        self, cut: Cut, target: TargetType, reduction: Callable[[], Reduction[R]], create_graph: bool
    ) -> tuple[Sweep[tuple[R, dict[str, Tensor]]], tuple[Tensor, ...]]:
        """A sweep over the model from the layer on, and the layer's tensors."""
        refuse_sharded(self)
        with cut.hooked(), torch.inference_mode(False):
            with ModuleStack():
                values, beside = cut.tensors(create_graph=create_graph)
                cut.refuse_shared(values, beside)
            layout = None if self.layout is None else positions(self.layout, values)
            past = partial(_PastLayer, reduction, len(values), cut.beside_names)
            swept: Any = sweep(cut, values, target, cut.rest, past, create_graph, layout, beside=beside)
        return swept, values


class NeuronFullGrad(NeuronAttribution, GradientAttribution):
    """Full-gradient attribution of a neuron of a layer to the inputs: where `NeuronGradient` stands.

    It is `FullGrad` of the function from the inputs to the neuron.

    Args:
        forward_func: As `FullGrad`'s `model`.
        layer: The layer that the neuron belongs to.
        device_ids: As `LayerFullGrad`.
        complete: As `FullGrad`: signed attributions then sum to the neuron's value.
        layout: As `FullGrad`.
        min_placed: As `FullGrad`.
        keep_floor: As `FullGrad`.

    Raises:
        TypeError: As `LayerFullGrad`.
        ValueError: As `LayerFullGrad`.

    References:
        S. Srinivas and F. Fleuret, NeurIPS 2019, arXiv:1905.00780, as `FullGrad`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> attributions = NeuronFullGrad(model, model[1], complete=True).attribute(x, neuron_selector=2)
        >>> torch.allclose(attributions.sum(1), model[:2](x)[:, 2], atol=1e-5)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        complete: bool = False,
        layout: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        min_placed: float | None = None,
        keep_floor: bool = False,
    ) -> None:
        check_model(forward_func)
        check_layers(layer, several=False)
        check_share(min_placed)
        NeuronAttribution.__init__(self, forward_func, layer, device_ids)
        self.complete, self.layout, self.min_placed, self.keep_floor = complete, layout, min_placed, keep_floor

    __repr__ = LayerFullGrad.__repr__

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: the input term is gradient times input."""
        return True

    def has_convergence_delta(self) -> bool:
        """False, as of all of Captum's Neuron methods: `assert_complete` compares the sum with the neuron's value."""
        return False

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        neuron_selector: int | tuple[int | slice, ...] | Callable[..., Tensor],
        additional_forward_args: object = None,
        attribute_to_neuron_input: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric:
        """Attributions of the inputs' shapes.

        Args:
            inputs: As in `FullGrad.attribute`.
            neuron_selector: As Captum's: an index, or a tuple of indices and slices, into the layer's tensor after its
                first dimension, where what slices pick is summed; or a function from the layer's tensor, or tuple of
                tensors, to values (N,).
            additional_forward_args: As in `FullGrad.attribute`.
            attribute_to_neuron_input: Whether the neuron is one of those that the layer takes, as
                `attribute_to_layer_input` in `LayerFullGrad.attribute`.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes, as `FullGrad.attribute` of the
            neuron's value.

        Warns:
            UserWarning: As `FullGrad.attribute`.

        Raises:
            ValueError: As `LayerFullGrad.attribute`.
            TypeError: As `FullGrad.attribute`.
            RuntimeError: As `FullGrad.attribute`.
            NotImplementedError: As `FullGrad.attribute`.
            AssertionError: As Captum's, for a selector that does not fit.
        """
        refuse_sharded(self)
        neuron = _Neuron(unwrap(self.forward_func), self.layer, neuron_selector, attribute_to_neuron_input)
        full_grad = FullGrad(
            neuron,
            complete=self.complete,
            layout=self.layout,
            min_placed=self.min_placed,
            keep_floor=self.keep_floor,
        )
        return full_grad.attribute(inputs, None, additional_forward_args)


class _Neuron:
    """A neuron's values (N,), as a function of a model's arguments."""

    def __init__(self, model: Callable[..., Any], layer: nn.Module, selector: Any, at_input: bool) -> None:
        self._model, self._layer, self._selector, self._at_input = model, layer, selector, at_input

    def __call__(self, *args: Any) -> Tensor:
        values: list[Tensor] = []

        def take(tree: Any) -> None:
            tensors = tuple(t.clone() for t in floats_in(tree))  # as they are before they are overwritten
            values.extend([select_neuron(tensors, self._selector)] if tensors else [])

        handle = hook(unwrapped(self._layer), self._at_input, take)
        try:
            run_forward(self._model, args)
        finally:
            handle.remove()
        if len(values) != 1:
            raise unclear(self._model, self._layer, len(values), self._at_input)
        return values[0]
