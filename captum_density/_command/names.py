"""What a command line names, imported: "package.module:name", "file.py:name", or a call of it with literals."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from captum_density._model.errors import one_line
from captum_density._model.generators import seeded

__all__ = ["BadInput", "call", "import_object", "required_arguments"]

# A file's name may hold a colon, as on Windows, and so may a call's texts.
_NAME = re.compile(r"(?P<module>.+?\.py|[^:]+):(?P<path>.+)", re.DOTALL)


class BadInput(Exception):
    """What was given does not do; the text is one line that says why, and what would."""


def import_object(name: str, what: str) -> Any:
    """Import what a name says.

    Args:
        name: "package.module:attribute"; "file.py:attribute"; or either with a call of literals at its end, such as
            "timm:create_model('resnet10t', num_classes=10)", of which nothing but literals is evaluated.
        what: The argument's name in errors.

    Returns:
        The attribute; of a call, a `functools.partial`, which is not called yet.

    Raises:
        BadInput: There is no such module or attribute, the module fails, or an argument of the call is no literal.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise BadInput(f"{what} must be package.module:name or file.py:name, but is {name!r}")
    path, arguments = match["path"], None
    if "(" in path:
        path, arguments = _call_of_literals(path, what)
    module_name, value = match["module"], _module(match["module"], what)
    for part in path.split("."):
        if not hasattr(value, part):
            raise BadInput(f"{what}: {module_name!r} has no {path!r}")
        value = getattr(value, part)
    if arguments is None:
        return value
    if not callable(value):
        raise BadInput(f"{what}: {module_name}:{path} is a {type(value).__name__}, which cannot be called")
    return partial(value, *arguments[0], **arguments[1])


def _call_of_literals(text: str, what: str) -> tuple[str, tuple[list[Any], dict[str, Any]]]:
    """The dotted name of a call, and its arguments."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("no plain call")
        path = ast.unparse(node.func)
        if not all(part.isidentifier() for part in path.split(".")):
            raise ValueError("no name is called")
        positional = [ast.literal_eval(argument) for argument in node.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        shown = text if len(text) <= 100 else f"{text[:97]}..."
        raise BadInput(
            f"{what}: {shown!r} must be a name or one call whose arguments are literals, such as "
            "build('tiny', classes=10); for anything else, write a function without arguments"
        ) from error
    return path, (positional, named)


def _module(name: str, what: str) -> ModuleType:
    file, dotted = None, name
    if name.endswith(".py"):
        file = Path(name).resolve()
        if not file.is_file():
            raise BadInput(f"{what}: there is no file {name!r}")
        dotted = _dotted(file)
    try:
        module = importlib.import_module(dotted)
    except (Exception, SystemExit) as error:  # whatever a user's module does, such as read the command line
        if isinstance(error, ModuleNotFoundError) and f"{dotted}.".startswith(f"{error.name}."):
            raise BadInput(
                f"{what}: there is no module {name!r} in the current folder or among the installed packages"
            ) from error
        raise BadInput(f"{what}: importing {name!r} fails: {one_line(error)}") from error
    if file is not None and Path(getattr(module, "__file__", None) or "").resolve() != file:
        raise BadInput(f"{what}: {dotted!r} is a module of another package as well; give {name!r} another name")
    return module


def _dotted(file: Path) -> str:
    """A file's name as a module, of the package that it lies in, if in one; its folder is searched from now on."""
    folder, parts = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return ".".join(parts)


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a call cannot do without; none where Python does not know them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def call(function: Callable[[], Any], name: str, what: str, seed: int) -> Any:
    """Call what was imported, without arguments.

    Args:
        function: As `import_object` returns it.
        name: Its name.
        what: The argument's name in errors.
        seed: Of what it draws; the global random states are left as they were.

    Raises:
        BadInput: It needs arguments, or fails.
    """
    shown = name if name.endswith(")") else f"{name}()"
    if missing := required_arguments(function):
        raise BadInput(
            f"{what}: {shown} needs the arguments {', '.join(missing)}; write a function without arguments, or a call "
            f'with literals, such as {what} "{name.partition("(")[0]}({missing[0]}=...)"'
        )
    try:
        with seeded(seed, torch.device("cpu")):
            return function()
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what}: {shown} fails: {one_line(error)}") from error
