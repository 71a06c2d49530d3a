"""An audit's figures and maps as files that other programs load."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from captum_density.audit._figures import FIGURES
from captum_density.audit._maps import Maps
from captum_density.audit._results import Measured, Results

__all__ = ["write_figures", "write_maps"]

_COLUMNS = (
    *("method", "figure", "value", "spread", "low", "high", "reference"),
    *("strongest_control", "control_value", "better", "note"),
)


def write_figures(results: Results, path: Path) -> None:
    """Write a row for each method and figure, and for each figure of the model, whose column "method" is empty.

    Columns are those of `Measured`, empty where a figure has none, and which direction is better.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(_rows(results))


def _rows(results: Results) -> Iterator[list[str | float | None]]:
    for method, row in {"": results.model, **results.methods}.items():
        for name, measured in row.items():
            yield [method, name, *_numbers(measured), FIGURES[name].better, measured.note]


def _numbers(measured: Measured) -> list[str | float | None]:
    control = measured.controls[0] if measured.controls else None
    return [
        *(measured.value, measured.spread, measured.low, measured.high, measured.reference),
        *((None, None) if control is None else (control.name, control.value)),
    ]


def write_maps(maps: Maps, path: Path) -> None:
    """Write what is drawn, few of the examples and small, as NumPy's `load` reads it.

    Arrays are ``inputs`` (K, ...), but of texts; ``targets`` (K,), the explained outputs; ``labels`` (K,), what stands
    beside each; ``names`` of features and ``tokens`` (K, L) where there are such; and each method's maps under
    ``maps/`` and its name: channels summed, each divided by its largest absolute value.
    """
    arrays: dict[str, Any] = {
        **({"inputs": maps.images.numpy()} if maps.images.numel() else {}),
        "targets": np.array(maps.targets),
        "labels": np.array(maps.row_labels),
        **({"names": np.array(maps.names)} if maps.names else {}),
        **({"tokens": np.array(maps.tokens)} if maps.tokens else {}),
        **{f"maps/{name}": values.numpy() for name, values in maps.maps.items()},
    }
    np.savez_compressed(path, **arrays)
