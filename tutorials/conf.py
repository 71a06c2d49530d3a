"""The documentation site: guides, notebooks, and a reference made from the docstrings.

Sphinx, MyST-NB and Furo. Nothing is loaded from another host, neither when it is built nor when it is read: the names
of Captum and PyTorch that we refer to are listed in `inventories` (Sphinx's first format, which is plain text), and
formulas become MathML.
"""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from docutils.utils.math import MathError, latex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # importing the package needs no GPU

import captum_density  # noqa: E402  (found by the line above)

project = "captum-density"
author = "captum-density developers"
release = version = captum_density.__version__
project_copyright = "captum-density developers, BSD 3-Clause License"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["templates"]
nitpicky = True

# Guides and notebooks. Notebooks are committed with their outputs, which `pytest --nbmake` checks.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3


def _comment(name: str) -> list[str]:
    """The lines of the comment above a constant, in the private module that defines it."""
    modules = [m for m in sys.modules if m.startswith("captum_density.") and "._" in m and name in vars(sys.modules[m])]
    documented = [ModuleAnalyzer.for_module(module).find_attr_docs() for module in modules]
    (lines,) = (comments["", name] for comments in documented if ("", name) in comments)  # others import it
    return lines


# The reference: every name in the `__all__` of each public namespace, a page each.
NAMESPACES = {name: importlib.import_module(f"captum_density.{name}") for name in captum_density._NAMESPACES}
PUBLIC = {name: f"{module.__name__}.{name}" for module in NAMESPACES.values() for name in module.__all__}
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autosummary_context = {
    "all_names": {module.__name__: module.__all__ for module in NAMESPACES.values()},
    "constants": {
        name: _comment(name)
        for module in NAMESPACES.values()
        for name in module.__all__
        if not callable(getattr(module, name))
    },
    # Whose members are described elsewhere; a class without one of these among its bases takes no notice.
    "not_inherited": "Module, Attribution, GradientAttribution, PerturbationAttribution, tuple, Exception",
}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "literal"  # in docstrings, `x` is code, as it is in Markdown

INVENTORIES = {"captum": "https://captum.ai/api/", "torch": "https://docs.pytorch.org/docs/stable/"}
intersphinx_mapping = {name: (url, f"inventories/{name}.txt") for name, url in INVENTORIES.items()}

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_title = "captum-density"
html_show_sourcelink = False
html_math_renderer = "mathml"


EXTERNAL = [
    line.split()[0]
    for name in INVENTORIES
    for line in (Path(__file__).parent / "inventories" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[3:]
]
# What may stand in code font, to the full name that it links to.
LINKS = {re.sub(r"^torch\.(?=nn\.)|^captum\.attr\.", "", name): name for name in EXTERNAL}
LINKS |= {name: name for name in [*EXTERNAL, *PUBLIC.values()]} | PUBLIC
# A type in a signature is known by the private module that defines it; its last part tells which one it is.
TYPES = {name.rpartition(".")[2]: name for name in [*EXTERNAL, *PUBLIC.values()]}


class LinkNames(SphinxTransform):
    """Every public name in code font becomes a link, in docstrings, guides and notebooks alike."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            name = re.match(r"[\w.]*", literal.astext())[0]  # of a call too
            owner, _, member = name.rpartition(".")
            full = LINKS.get(name) or (f"{LINKS[owner]}.{member}" if owner in LINKS else None)
            inside = {type(parent).__name__ for parent in _parents(literal)}
            if full and not inside & {"title", "reference", "pending_xref"}:
                link = pending_xref("", literal.deepcopy(), refdomain="py", reftype="obj", reftarget=full)
                link["refdoc"] = self.env.docname
                literal.replace_self(link)


def _parents(node: nodes.Node) -> list[nodes.Node]:
    return [] if node.parent is None else [node.parent, *_parents(node.parent)]


def _mathml(translator: Any, node: nodes.Element) -> None:
    """A formula as MathML, which browsers lay out themselves."""
    block = isinstance(node, nodes.math_block)
    tex = node.astext().replace(r"\dots", r"\ldots")
    tex = re.sub(r"(\\(?:bar|hat|tilde) ?(?:\w|\{\w\}))(?=_)", r"\1{}", tex)  # or the index lands below the letter
    try:
        formula = latex2mathml.tex2mathml(tex, as_block=block)
    except MathError as error:
        logger.warning("%s in %s", error, node.astext(), location=node)
        formula = ""
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def _escape_initials(app: Sphinx, kind: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """Keep docutils from reading an author's initial at the start of a line as an item of a list."""
    lines[:] = [re.sub(r"^(\s*[A-Z])\. ", r"\1\. ", line) for line in lines]


def _public_type(app: Sphinx, env: Any, node: pending_xref, text: nodes.Node) -> nodes.Node | None:
    """Link a type in a signature."""
    package, _, name = node["reftarget"].rpartition(".")
    full = TYPES.get(name, "")
    if node["reftype"] != "class" or not full.startswith(package.partition(".")[0]):
        return None
    node["reftarget"] = full  # for intersphinx, which comes next
    domain = env.get_domain("py")
    found: nodes.Node | None = domain.resolve_xref(env, node["refdoc"], app.builder, "class", full, node, text)
    return found


def _plain_type(app: Sphinx, env: Any, node: pending_xref, text: nodes.Node) -> nodes.Node | None:
    """Show a type that has no page, of the standard library or private, without a link; other names have to exist."""
    return text if node["reftype"] == "class" else None


def _bar(inliner: Inliner, match: re.Match[str], line: int) -> tuple[str, list[Any], str, list[Any]]:
    """Nothing: in docstrings |x| is an absolute value, and not a substitution."""
    end = match.end("start")
    return match.string[:end], [], match.string[end:], []


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    Inliner.dispatch["|"] = _bar
    app.connect("autodoc-process-docstring", _escape_initials)
    app.connect("missing-reference", _public_type, priority=400)
    app.connect("missing-reference", _plain_type, priority=900)
    app.add_transform(LinkNames)
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
