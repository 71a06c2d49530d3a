"""What tools find: the package's namespaces, and an audit that is a package and can be called."""

import ast
import inspect
import pydoc
from pathlib import Path

import torch

import captum_density
from captum_density.audit import audit

ROOT = Path(captum_density.__file__).parent
NAMESPACES = [path.parent.name for path in ROOT.glob("[!_]*/__init__.py")]


def test_dir_shows_public_names_only():
    assert sorted(name for name in dir(captum_density) if not name.startswith("__")) == sorted(NAMESPACES)
    for name in dir(captum_density):
        assert hasattr(captum_density, name)


def test_help_says_which_namespace_is_for_what():
    text = pydoc.render_doc(captum_density, renderer=pydoc.plaintext)
    for name in NAMESPACES:
        assert f"- `{name}`: " in text, name


def test_type_checkers_are_told_the_same_namespaces():
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    imported = {
        alias.name
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module == "captum_density"
        for alias in node.names
    }
    assert {*imported, "audit"} == {*NAMESPACES}
    (declared,) = (node for node in stub.body if isinstance(node, ast.ClassDef))
    names = {target.id for node in declared.body if isinstance(node, ast.Assign) for target in node.targets}
    assert names == {*captum_density.audit.__all__, "__call__"}


def test_the_package_of_the_audit_is_called_and_described_as_the_function_is():
    # What a notebook's `?` shows, too.
    assert inspect.signature(captum_density.audit) == inspect.signature(audit)
    assert inspect.getdoc(type(captum_density.audit).__call__) == inspect.getdoc(audit)
    text = pydoc.render_doc(captum_density.audit, renderer=pydoc.plaintext)
    assert "audit(model: " in text and "References:" in text
    report = captum_density.audit(torch.nn.Linear(2, 2), torch.rand(3, 2), "Saliency", metrics=["gradient_norm"])
    assert report.settings["examples"] == 3
