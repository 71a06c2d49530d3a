"""Errors as a report and a command line show them, warnings, and the words for what was received."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import captum
import torch

__all__ = ["describe", "one_line", "warn"]

_OTHERS_CODE = (
    *(f"{Path(str(module.__file__)).parent}{os.sep}" for module in (captum, torch)),
    f"{Path(__file__).parents[1]}{os.sep}",
    contextlib.__file__,
)


def one_line(error: BaseException) -> str:
    """An error's class and text in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


def describe(value: object) -> str:
    """What a value is, in words: "the class Saliency" or "an object of class Saliency"."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of class {type(value).__name__}"


def warn(text: str) -> None:
    """Warn the user, at the line of code that led here through this package, PyTorch and Captum."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OTHERS_CODE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
