"""What the command line asks for: an audit of the user's model, or of one trained on the digits."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from captum_density._cache.store import Store
from captum_density._command.data import load_data
from captum_density._command.digits_job import FULL, QUICK, remove_pictures, run
from captum_density._command.models import load_model
from captum_density._command.names import BadInput, import_object
from captum_density._display.terminal import printable
from captum_density._model.errors import one_line
from captum_density._model.generators import seeded
from captum_density.audit import Retraining, audit, check_names

__all__ = ["BadInput", "audit_digits", "audit_model", "lack_of_memory"]

# What a store writes, and nothing else that may lie in a folder of its name.
_FINISHED = re.compile(r"[0-9a-f]{32}\.json(\.rejected-\d+)?")


def audit_digits(arguments: Namespace, store: Path) -> None:
    """Train a network on the embedded digits, audit it, and look at the densities of three more.

    Args:
        arguments: As `parse` returns them.
        store: Where finished figures are kept.

    Raises:
        BadInput: Unknown names.
        OSError: The folders cannot be written to.
    """
    attributions = _attributions(arguments)
    _prepare(store, arguments.resume)
    try:
        run(
            arguments.out,
            seed=arguments.seed,
            device=arguments.device,
            effort=QUICK if arguments.quick else FULL,
            attributions=attributions,
            metrics=arguments.metrics,
            limit=arguments.limit,
            store=store,
        )
    except (TypeError, ValueError) as error:
        raise BadInput(str(error)) from error


def audit_model(arguments: Namespace, store: Path) -> None:
    """Load a model and data, audit, print and write the report.

    Args:
        arguments: As `parse` returns them.
        store: Where finished figures are kept.

    Raises:
        BadInput: Something that was given does not do.
        OSError: The folders cannot be written to.
    """
    # A user's modules may draw numbers when they are imported.
    with seeded(arguments.seed, torch.device(arguments.device)):
        _check_needs(arguments)
        attributions = _attributions(arguments)
        model = load_model(arguments.model, arguments.weights, seed=arguments.seed, device=arguments.device)
        data = load_data(arguments.data, arguments.transform, seed=arguments.seed)
        proxy = None
        if arguments.proxy is not None:
            proxy = load_model(arguments.proxy, None, seed=arguments.seed, device=arguments.device, what="--proxy")
        retraining = _retraining(arguments, data)
        _prepare(store, arguments.resume)
        try:
            report = audit(
                model,
                data,
                attributions,
                metrics=arguments.metrics,
                limit=arguments.limit or 64,
                seed=arguments.seed,
                proxy=proxy,
                retraining=retraining,
                effort="thorough" if arguments.thorough else "default",
                store=store,
                show_progress=True,
                name=arguments.model,
            )
        except (TypeError, ValueError) as error:
            raise BadInput(str(error)) from error
    remove_pictures(arguments.out)
    written = report.save(arguments.out)
    print(printable(f"{report}\n\nwritten to {arguments.out}: {', '.join(written)}"))


def lack_of_memory(error: MemoryError | RuntimeError) -> str | None:
    """What to do about an error, if it is that of a machine whose memory is full; None if it is another."""
    text = str(error)
    # PyTorch has a class of error for a GPU's memory, and none for the machine's.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            "the memory does not do for so many examples, or for examples so large; give a smaller --limit, or a "
            f"--transform that makes them smaller ({one_line(error)})"
        )
    return None


def _prepare(store: Path, resume: bool) -> None:
    """Forget what another audit measured, unless it is to go on; find out whether the folder can be written to."""
    if not resume:
        for folder in (store / "retraining", store):
            for path in list(folder.glob("*")):
                if _FINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
    Store(store)


def _attributions(arguments: Namespace) -> Mapping[str, Any] | None:
    """Names that the audit knows as they are, and functions where they are imported from; all checked."""
    attributions = None
    if arguments.attributions is not None:
        attributions = {
            name: import_object(name, "--attributions") if ":" in name else name for name in arguments.attributions
        }
    for argument, names in (("--metrics", (None, arguments.metrics)), ("--attributions", (attributions, None))):
        try:
            check_names(*names)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{argument}: {error}") from error
    return attributions


def _check_needs(arguments: Namespace) -> None:
    """What goes with what: a figure with what it needs, and what only a figure needs with the figure."""
    names = {*(arguments.metrics or ())}
    for metric, argument, value in (
        ("gan_test", "--proxy", arguments.proxy),
        ("diff_roar", "--train", arguments.train),
    ):
        wanted = bool(names & {metric, "all"})
        if wanted and value is None:
            raise BadInput(f"--metrics: {metric} goes with {argument}, and 'default' is what needs nothing more")
        if value is not None and not wanted:
            raise BadInput(f"{argument}: is for the metric {metric}; ask for it, as in --metrics default {metric}")


def _retraining(arguments: Namespace, data: Any) -> Retraining | None:
    if arguments.train is None:
        return None
    build = import_object(arguments.model, "--model")
    if not callable(build) or isinstance(build, torch.nn.Module):
        raise BadInput(
            f"--train: diff_roar retrains new models, and --model {arguments.model} is no function that makes them"
        )
    return Retraining(build, load_data(arguments.train, arguments.transform, "--train", seed=arguments.seed), data)
