"""What the command line asks for: an audit of the user's model, or of one trained on the digits."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution

from captum_density import _command as _demo
from captum_density._cache.store import Store
from captum_density._command.loading import BadInput, load_data, load_model, resolved
from captum_density._model.generators import seeded
from captum_density.audit import Retraining, audit, check_names

__all__ = ["BadInput", "audit_digits", "audit_model"]

# What a store writes, and nothing else that may lie in a folder of its name.
_CELL = re.compile(r"[0-9a-f]{32}\.json(\.rejected-\d+)?")


def audit_digits(asked: Namespace, cells: Path) -> None:
    """Train a network on the embedded digits, audit it, and look at the densities of three more.

    Args:
        asked: The parsed arguments.
        cells: Where finished figures are kept.

    Raises:
        BadInput: Unknown names.
        OSError: The folders cannot be written to.
    """
    attributions = _attributions(asked)
    _prepare(cells, asked.resume)
    try:
        _demo.run(
            asked.out,
            seed=asked.seed,
            device=asked.device,
            effort=_demo.QUICK if asked.quick else _demo.FULL,
            attributions=attributions,
            metrics=asked.metrics,
            limit=asked.limit,
            store=cells,
        )
    except (TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def audit_model(asked: Namespace, cells: Path) -> None:
    """Load a model and data, audit, print and write the report.

    Args:
        asked: The parsed arguments.
        cells: Where finished figures are kept.

    Raises:
        BadInput: Something that was given does not do.
        OSError: The folders cannot be written to.
    """
    # A user's modules may draw numbers when they are imported.
    with seeded(asked.seed, torch.device(asked.device)):
        _check_needs(asked)
        attributions = _attributions(asked)
        model = load_model(asked.model, asked.weights, seed=asked.seed, device=asked.device)
        data = load_data(asked.data, asked.transform, seed=asked.seed)
        proxy = None
        if asked.proxy is not None:
            proxy = load_model(asked.proxy, None, seed=asked.seed, device=asked.device, what="--proxy")
        retraining = _retraining(asked, data)
        _prepare(cells, asked.resume)
        try:
            report = audit(
                model,
                data,
                attributions,
                metrics=asked.metrics,
                limit=asked.limit or 64,
                seed=asked.seed,
                proxy=proxy,
                retraining=retraining,
                store=cells,
                show_progress=True,
                name=asked.model,
            )
        except (TypeError, ValueError) as error:
            raise BadInput(str(error)) from error
    written = report.save(asked.out)
    print(f"{report}\n\nwritten to {asked.out}: {', '.join(written)}")


def _prepare(cells: Path, resume: bool) -> None:
    """Forget what another audit measured, unless it is to go on; find out whether the folder can be written to."""
    if not resume:
        for folder in (cells / "retraining", cells):
            for path in list(folder.glob("*")):
                if _CELL.fullmatch(path.name):
                    path.unlink(missing_ok=True)
    Store(cells)


def _attributions(asked: Namespace) -> Mapping[str, str | Callable[[Any], Attribution]] | None:
    """Names that the audit knows as they are, and functions where they are imported from; all checked."""
    found = None
    if asked.attributions is not None:
        found = {name: resolved(name, "--attributions") if ":" in name else name for name in asked.attributions}
    for argument, names in (("--metrics", (None, asked.metrics)), ("--attributions", (found, None))):
        try:
            check_names(*names)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{argument}: {error}") from error
    return found


def _check_needs(asked: Namespace) -> None:
    """What goes with what: a figure with what it needs, and what only a figure needs with the figure."""
    named = {*(asked.metrics or ())}
    for metric, argument, given in (("gan_test", "--proxy", asked.proxy), ("diff_roar", "--train", asked.train)):
        wanted = bool(named & {metric, "all"})
        if wanted and given is None:
            raise BadInput(f"--metrics: {metric} goes with {argument}, and 'default' is what needs nothing more")
        if given is not None and not wanted:
            raise BadInput(f"{argument}: is for the metric {metric}; ask for it, as in --metrics default {metric}")


def _retraining(asked: Namespace, data: Any) -> Retraining | None:
    if asked.train is None:
        return None
    build = resolved(asked.model, "--model")
    if not callable(build) or isinstance(build, torch.nn.Module):
        raise BadInput(
            f"--train: diff_roar retrains new models, and --model {asked.model} is no function that makes them"
        )
    return Retraining(build, load_data(asked.train, asked.transform, "--train", seed=asked.seed), data)
