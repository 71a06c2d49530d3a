"""Seeds for everything that is drawn, and models that depend on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from captum_density._model.generators import derived_seed, seeded

__all__ = ["batches", "count_batches", "initial_model", "size_of"]

_CPU = torch.device("cpu")


def initial_model(make_model: Callable[[], nn.Module], seed: int, run: int) -> nn.Module:
    """The model of a run before training, made on whatever device the factory makes it on.

    Raises:
        TypeError: The factory makes no module.
        ValueError: The module has parameters without values (lazy ones), or none to train.
    """
    start, initialised = derived_seed(seed, "initial", run), torch.cuda.is_initialized()
    with seeded(start, torch.device("cuda" if initialised else "cpu")):
        model = make_model()
    # A factory may draw on a GPU; one that does not must not initialise it, as no process could be forked any more.
    if torch.cuda.is_initialized() and not initialised:
        with seeded(start, torch.device("cuda")):
            model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"make_model must return a torch.nn.Module, but returned {type(model).__name__}")
    parameters = list(model.parameters())
    if any(nn.parameter.is_lazy(p) for p in [*parameters, *model.buffers()]):
        raise ValueError(
            "make_model returned a module with lazy parameters; run it once on an example before returning"
        )
    if not any(p.requires_grad for p in parameters):
        raise ValueError("make_model returned a module without a parameter that requires a gradient")
    return model


def size_of(model: nn.Module) -> list[float]:
    """Two numbers for each parameter and buffer, which differ after another draw.

    They are sums of what is positive, so that rounding hardly moves them.
    """
    sizes = []
    for value in [*model.parameters(), *model.buffers()]:
        flat = value.detach().abs().double().flatten().cpu()
        sizes += [
            flat.sum().item(),
            (flat * torch.linspace(1, 2, len(flat), dtype=flat.dtype, device="cpu")).sum().item(),
        ]
    return sizes


def batches(n: int, batch_size: int, epochs: int, seed: int, run: int, device: torch.device = _CPU) -> Iterator[Tensor]:
    """The examples of each step of a run: a fresh permutation each epoch, drawn on the CPU, cut in batches.

    All models of a run see the same order, so that their difference is what they were trained on.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", run))
    for _ in range(epochs):
        for batch in torch.randperm(n, generator=generator, device=_CPU).to(device).split(batch_size):
            if len(batch) > 1 or n == 1 or batch_size == 1:  # batch norm has no statistics of one example
                yield batch


def count_batches(n: int, batch_size: int, epochs: int) -> int:
    """How many steps `batches` gives."""
    full, rest = divmod(n, batch_size)
    return epochs * (full + (rest > 1 or (rest == 1 and n == 1)))
