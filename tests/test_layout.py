"""The layout of the package: imports point one way, and each public name has one path."""

import ast
import functools
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import captum_density

ROOT = Path(captum_density.__file__).parent

# A folder may import from those before it, and from within itself.
FOLDERS = (
    *("_display", "_model", "_controls", "_cache", "_linear", "_density", "_attention"),
    *("rules", "softmax_shift", "density", "losses", "samplers", "rewriting", "datasets"),
    *("attr", "retraining", "metrics", "plots", "testing", "ground_truth", "audit", "_command", "__main__"),
)
LEVEL = {name: level for level, name in enumerate(FOLDERS)}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path, *, of_functions: bool = True) -> Iterator[str]:
    """Every module, or name in a module, that a file imports, absolute, wherever in the file it does.

    With `of_functions` false, only what is imported as the file is.
    """
    package = _module(path) if path.name == "__init__.py" else _module(path).rpartition(".")[0]
    tree = _tree(path)
    for node in ast.walk(tree) if of_functions else tree.body:
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


def test_every_folder_has_a_level():
    tops = {_module(path).split(".")[1] for path in FILES if path != ROOT / "__init__.py"}
    assert tops <= LEVEL.keys(), f"give these a place in FOLDERS: {tops - LEVEL.keys()}"


def test_imports_point_one_way():
    wrong = []
    for importer, imported in INTERNAL:
        if importer == "captum_density" or imported == "captum_density.__version__":
            continue
        source, aim = importer.split(".")[1], imported.split(".")[1]
        if LEVEL[aim] > LEVEL[source]:
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
    assert users == {"captum_density._model.captum"}


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


@pytest.mark.parametrize("module_name", [name for name in PUBLIC if name != "captum_density"])
def test_dir_shows_public_names_only(module_name):
    module = importlib.import_module(module_name)
    assert dir(module) == sorted(module.__all__)


def test_every_public_name_has_one_path():
    paths: dict[str, list[str]] = {}
    for module_name in PUBLIC:
        for name in _exports(module_name):
            paths.setdefault(name, []).append(module_name)
    assert paths
    assert not {name: modules for name, modules in paths.items() if len(modules) > 1}


def test_namespaces_load_when_they_are_named():
    code = (
        "import sys, captum_density\n"
        "print(*(name for name in dir(captum_density) if not name.startswith('_') and name[0].islower()))\n"
        "assert not hasattr(captum_density, 'nothing')\n"
        "assert not {'torch', 'captum', 'numpy'} & sys.modules.keys()\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    ).stdout.split()
    assert set(printed) == {name.split(".")[1] for name in PUBLIC if name != "captum_density"}


def test_packages_that_few_functions_need_are_imported_by_these():
    loads = {_module(path): list(_imports(path, of_functions=False)) for path in FILES}
    namespaces = {name for name in PUBLIC if name not in ("captum_density", "captum_density.__main__")}
    reached, left = set(), namespaces
    while left:
        reached |= left
        names = {name for module in left for name in loads[module]}
        left = {name if name in loads else name.rpartition(".")[0] for name in names} & loads.keys() - reached
    late = {"dask", "distributed", "loky", "skimage", "sklearn", "torchvision", "transformers"}
    early = [
        f"{module} imports {name}"
        for module in reached
        for name in loads[module]
        if name.split(".")[0] in late or name.startswith("torch._dynamo")  # which is as slow to load as PyTorch itself
    ]
    assert len(reached) > 2 * len(namespaces)
    assert not early


def test_no_import_is_for_type_checkers_alone():
    # It hides a circle, or an import against the order of FOLDERS.
    users = {_module(path) for path in FILES for name in _imports(path) if name == "typing.TYPE_CHECKING"}
    assert not users


def test_the_audit_is_a_function_and_its_namespace():
    assert callable(captum_density.audit) and captum_density.audit.Method


def test_typed_marker_ships():
    assert (ROOT / "py.typed").is_file()


# What PyTorch puts on its default device, tensors that are there already in the case of `as_tensor`.
FACTORIES = frozenset(
    """
    zeros ones arange tensor rand randn randint linspace logspace eye full empty randperm as_tensor asarray
    scalar_tensor tril_indices triu_indices
    """.split()
)


def test_every_new_tensor_is_told_where_to_be():
    """So that `torch.set_default_device` changes nothing, but for a module's own parameters, as PyTorch's modules'."""
    wrong = []
    for path in FILES:
        calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
        parameters = [node for node in calls if getattr(node.func, "attr", "") == "Parameter"]
        own = {id(inner) for node in parameters for inner in ast.walk(node)}
        for node in calls:
            of_torch = getattr(getattr(node.func, "value", None), "id", "") == "torch" and node.func.attr in FACTORIES
            if of_torch and id(node) not in own and not {"device", "out"} & {k.arg for k in node.keywords}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "give these a device"
