"""The layout of the package: imports point one way, each public name has one path, and each is documented."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import captum_density

ROOT = Path(captum_density.__file__).parent

# A module may import from the lines above its own, and a package from within itself.
LAYERS = (
    {"_arrays", "_captum", "_figures", "_fixed_modules", "_masks", "_random", "_scratch"},
    {"_evaluation", "_identity"},
    {"_store"},
    {"_affine", "_calls", "_maps", "_modules", "_places", "_remainder", "_sweep", "_validation"},
    {"_attention", "_outputs"},
    {"_log_density"},
    {"_langevin", "_trace"},
    {"density", "rewriting", "softmax_shift"},
    {"attr", "samplers", "losses"},
    {"retraining"},
    {"metrics"},
    # Leaves: nothing but what follows imports them.
    {"datasets", "plots", "testing", "_conformance", "_networks", "_network_layers"},
    {"audit"},
    {"_demo"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Pieces of one thing, which may import each other.
TOGETHER = (
    {"_affine", "_calls", "_maps", "_modules", "_places", "_remainder", "_sweep", "_validation"},
    {"testing", "_conformance", "_networks", "_network_layers"},
)


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Every module, or name in a module, that a file imports, absolute, wherever in the file it does."""
    package = _module(path) if path.name == "__init__.py" else _module(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*relative, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


FILES = sorted(ROOT.rglob("*.py"))
INTERNAL = [
    (_module(path), name) for path in FILES for name in _imports(path) if name.split(".")[0] == "captum_density"
]
PUBLIC = [
    name
    for name in ["captum_density", *(found.name for found in pkgutil.walk_packages([str(ROOT)], "captum_density."))]
    if not any(part.startswith("_") for part in name.split("."))
]


def test_every_module_has_a_layer():
    tops = {_module(path).split(".")[1] for path in FILES if path != ROOT / "__init__.py"}
    assert tops <= LEVEL.keys(), f"give these a line in LAYERS: {tops - LEVEL.keys()}"


def test_imports_point_one_way():
    wrong = []
    for importer, imported in INTERNAL:
        if importer == "captum_density" or imported == "captum_density.__version__":
            continue
        source, aim = importer.split(".")[1], imported.split(".")[1]
        allowed = source == aim or any({source, aim} <= group for group in TOGETHER) or LEVEL[aim] < LEVEL[source]
        if not allowed:
            wrong.append(f"{importer} imports {imported}")
    assert INTERNAL
    assert not wrong


def test_no_import_reaches_into_another_package():
    # captum_density.attr._full_grad is for captum_density.attr alone; top-level private modules are for everyone.
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in INTERNAL
        if any(part.startswith("_") and not part.startswith("__") for part in imported.split(".")[2:])
        and imported.split(".")[1] != [*importer.split("."), ""][1]
        and not imported.split(".")[1].startswith("_")
    ]
    assert not wrong


def test_only_one_file_imports_private_captum():
    users = {
        _module(path)
        for path in FILES
        for name in _imports(path)
        if name.split(".")[0] == "captum" and any(part.startswith("_") for part in name.split(".")[1:])
    }
    assert users == {"captum_density._captum"}


def _exports(module_name: str) -> list[str]:
    return list(getattr(importlib.import_module(module_name), "__all__", ()))


@pytest.mark.parametrize("module_name", [name for name in PUBLIC if name != "captum_density"])
def test_public_module_lists_its_names(module_name):
    module = importlib.import_module(module_name)
    assert module.__doc__
    exported = module.__all__
    # RUF022 keeps __all__ sorted; here, that it is complete and that nothing in it is missing.
    assert all(hasattr(module, name) for name in exported)
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module_name
    }
    assert defined <= set(exported), f"public by name and not in __all__: {defined - set(exported)}"


def test_every_public_name_has_one_path():
    paths: dict[str, list[str]] = {}
    for module_name in PUBLIC:
        for name in _exports(module_name):
            paths.setdefault(name, []).append(module_name)
    assert paths
    assert not {name: modules for name, modules in paths.items() if len(modules) > 1}


def _described_elsewhere(owner: object, function: object) -> bool:
    """Whether a method implements one whose documentation describes its arguments: Captum's, PyTorch's, a base's."""
    if not (inspect.isclass(owner) and inspect.isfunction(function)):
        return False
    bases = [base for base in owner.__mro__[1:] if function.__name__ in vars(base)]
    outside = any(base.__module__.split(".")[0] in ("captum", "torch") for base in bases)
    return outside or any("Args:" in (vars(base)[function.__name__].__doc__ or "") for base in bases)


NAMES = [(module_name, name) for module_name in PUBLIC for name in _exports(module_name)]


@pytest.mark.parametrize(("module_name", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_public_names_are_documented(module_name, name):
    value = getattr(importlib.import_module(module_name), name)
    if not callable(value):
        return
    described = {name: value}
    if inspect.isclass(value):
        described |= {
            f"{name}.{member}": function
            for member, function in vars(value).items()
            if inspect.isfunction(function) and not member.startswith("_")
        }
    for what, function in described.items():
        text = inspect.cleandoc(vars(function).get("__doc__") or getattr(function, "__doc__", None) or "")
        assert text, f"{what} has no docstring"
        assert not text.startswith(f"{name}("), f"{what} has only the docstring that dataclass or NamedTuple made"
        if inspect.isclass(function) or (function.__name__ != "attribute" and _described_elsewhere(value, function)):
            continue
        parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
        assert not parameters or "Args:" in text, f"{what} does not describe its arguments"
        described_arguments = text.partition("Args:")[2]
        missing = [p for p in parameters if f"{p}:" not in described_arguments and f"{p}," not in described_arguments]
        assert not missing, f"{what} does not describe {missing}"
        returns = inspect.signature(function).return_annotation
        assert returns is not inspect.Signature.empty, f"{what} has no return annotation"
        if parameters and returns not in (None, "None"):
            assert "Returns:" in text or "Yields:" in text, f"{what} does not say what it returns"
    if inspect.isfunction(value):
        assert "Example:" in inspect.getdoc(value), f"{name} has no example"


def test_typed_marker_ships():
    assert (ROOT / "py.typed").is_file()
