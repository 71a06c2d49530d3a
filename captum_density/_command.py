"""What the command line asks for: an audit of the user's model, or of one trained on the digits."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution

from captum_density import _demo
from captum_density._loading import BadInput, load_data, load_model, resolved
from captum_density.audit import Retraining, audit

__all__ = ["BadInput", "audit_digits", "audit_model"]


def audit_digits(asked: Namespace, cells: Path) -> None:
    """Train a network on the embedded digits, audit it, and look at the densities of three more.

    Args:
        asked: the parsed arguments.
        cells: where finished figures are kept.

    Raises:
        BadInput: unknown names.
    """
    effort = _demo.QUICK if asked.quick else _demo.FULL
    try:
        _demo.run(
            asked.out,
            seed=asked.seed,
            device=asked.device,
            effort=effort,
            attributions=None if asked.attributions is None else _attributions(asked.attributions),
            metrics=asked.metrics,
            limit=asked.limit,
            store=cells,
        )
    except (TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def audit_model(asked: Namespace, cells: Path) -> None:
    """Load a model and data, audit, print and write the report.

    Args:
        asked: the parsed arguments.
        cells: where finished figures are kept.

    Raises:
        BadInput: something that was given does not do.
    """
    model = load_model(asked.model, asked.weights, seed=asked.seed, device=asked.device)
    data = load_data(asked.data, asked.transform)
    proxy = None
    if asked.proxy is not None:
        proxy = load_model(asked.proxy, None, seed=asked.seed, device=asked.device, what="--proxy")
    try:
        report = audit(
            model,
            data,
            None if asked.attributions is None else _attributions(asked.attributions),
            metrics=asked.metrics,
            limit=asked.limit or 64,
            seed=asked.seed,
            proxy=proxy,
            retraining=_retraining(asked, data),
            store=cells,
            show_progress=True,
            name=asked.model,
        )
    except (TypeError, ValueError) as error:
        raise BadInput(str(error)) from error
    print(report)
    written = report.save(asked.out)
    print(f"\nwritten to {asked.out}: {', '.join(written)}")


def _attributions(names: list[str]) -> Mapping[str, str | Callable[[Any], Attribution]]:
    """Names that the audit knows as they are, and functions where they are imported from."""
    return {name: resolved(name, "--attributions") if ":" in name else name for name in names}


def _retraining(asked: Namespace, data: Any) -> Retraining | None:
    if asked.train is None:
        return None
    build = resolved(asked.model, "--model")
    if not callable(build) or isinstance(build, torch.nn.Module):
        raise BadInput(
            f"--train: diff_roar retrains new models, and --model {asked.model} is no function that makes them"
        )
    return Retraining(build, load_data(asked.train, asked.transform, "--train"), data)
