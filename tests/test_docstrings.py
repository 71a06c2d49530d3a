"""The reference by docstrings: every public name says what it takes, returns and raises, whence it is, and an example.

What a docstring lacks is told by name. The rules, each a test below, and where they stop:

- Args: each parameter has an entry, its own ("seed: Of the noise.") or one for several ("inputs, target: As in
  `FullGrad.attribute`."); a last line "Other arguments: As `diff_roar`." stands for all that have none. What an entry
  refers to with "As `name`" has to be public and to describe that parameter. A parameter whose annotation has a tensor
  in it (callables aside) gives its shape in one of the forms of `SHAPE`, or refers to one that does; a `target` may be
  "As Captum's".
- Returns, or Yields: whatever does not return None; tensors with a shape. Without parameters the summary will do.
- Raises: whatever takes arguments, and wherever a `raise` is met in the code, or in what it calls of this package, as
  far as names tell. What a call of an object raises its class may say, after "from a call".
- References: an arXiv id, or a title in quotation marks and a year.
- Example: a doctest that imports torch and whose last line has an output to compare.

A method is spared, save for Raises, where a base describes it: `Attribution`'s or `Module`'s documentation, but for
`attribute` and `forward`; or a base of ours, which is then held to the rules itself. Exceptions to the rules are in the
tables, with reasons, and one that has become needless fails as well.
"""

import ast
import dataclasses
import doctest
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import Tensor

import captum_density

# Results, which need neither paper nor example of their own, as they name the function that has them.
MADE_BY = dict(
    pair.split(":")
    for pair in """
    AttentionErasure:attention_erasure BlockSplits:block_digits ConformanceError:check_attribution
    Control:audit Digits:digits Effects:Task Recommendation:audit
    FFidelity:f_fidelity Failure:check_attribution FeatureLeakage:feature_leakage Finding:audit JobResult:fit_many
    FractionToFlip:fraction_to_flip FullGradients:FullGrad.decompose GanTest:gan_test ImageSplits:mnist
    LayerFullGradients:LayerFullGrad.decompose
    Ledger:LogitLedger Measured:audit Photographs:photographs PixelPerturbation:pixel_perturbation
    GroupPerturbation:group_perturbation ParameterRandomisation:parameter_randomisation
    ControlComparison:compare_with_controls
    Problem:networks Samples:LangevinSampler ShiftSensitivity:shift_sensitivity StoppedError:fit_many
    WeightChoice:choose_weight
    TaskExamples:Task Verification:Task Examination:examine GroundTruthTable:run Trial:run
    """.split()
)
# No method of a paper: why, and what.
NO_PAPER = {
    "a result, whose function names the paper": {"AuditReport", "AxiomTable", "RetrainingResult"},
    "data and settings": {"Examples", "FitConfig", "Job", "Method", "Retraining"},
    "trains, for methods that have papers": {"fit_many"},
    "a picture": set(
        "attention_erasure_scatter density_ratio_curves fraction_to_flip_boxes pixel_perturbation_curves saliency_grid "
        "sample_grid".split()
    ),
    "a helper of a metric": {"patch_mask"},
    "a tool for tests": {"attribution_checks", "check_attribution", "networks"},
}
# Takes arguments, and refuses none: why, and what.
RAISES_NOTHING = {"a record, which its function fills or reads": {"AuditReport", "AxiomTable", "RetrainingResult"}}
RAISES_NOTHING |= {"a number and a yes or no of a record": {"Control.lower_end", "Measured.beats_every_control"}}
RAISES_NOTHING |= {"settings, which their function checks": {"Retraining"}}
RAISES_NOTHING |= {"called by a metric, with what it is given": {"Trial.output", "Trial.scores", "Trial.spread"}}
# Examples that are not run, as they would download.
DOWNLOADS = {"block_mnist", "cifar10", "mnist", "svhn"}

# Tensors whatever their annotation, where that is Any.
NAMED = {"attributions", "baselines", "inputs", "test", "train"}
_DIMENSION = r"(?:\d*[A-Z]\d*|\d+|[a-z_]+|\*[a-z_]+|\d+ \+ [a-z_]+|[a-z] \* [a-z_]+|\.\.\.)"
SHAPE = re.compile(
    # (N,), (N, ...), (C, H, W), (1 + n_steps, N, ...), (positions,); not (low, high) or (0, 1)
    rf"\((?=[^)]*[A-Z*]|[^)]*\.\.\.|[^)]*,\)){_DIMENSION}(?:,|(?:, {_DIMENSION})+)\)"
    r"|\b(?:inputs'|input's|example's|logits') shapes?\b"  # of the inputs' shape
    r"|\b[Ll]ike the inputs\b"
    r"|\bbroadcasts to (?:the|an) \w+"  # a tensor that broadcasts to the input
    r"|\b[Aa] scalar\b"
)
REFERENCE = re.compile(r"As (?:in |for )?`([\w.]+)`")
OTHERS = re.compile(r"^Other arguments: As (?:in |for )?`([\w.]+)`", re.MULTILINE)
CITATION = re.compile(r"arXiv:\d{4}\.\d{4,5}|\"[^\"]{8,}\",[^\"]*\b(?:19|20)\d\d\b")
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Warns", "References", "Example")


class Described(NamedTuple):
    """A public function, class, method or property, and the class that it was met in."""

    name: str
    value: Any
    owner: type | None = None

    @property
    def text(self) -> str:
        # A class's own: __doc__ of one without would be that of its base.
        text = vars(self.value).get("__doc__") if inspect.isclass(self.value) else self.value.__doc__
        return inspect.cleandoc(text or "")

    @property
    def function(self) -> Callable[..., Any] | None:
        """What runs when it is called, if that is ours and not made by dataclass or NamedTuple."""
        if inspect.isclass(self.value):
            has_fields = dataclasses.is_dataclass(self.value) or issubclass(self.value, tuple)
            function = getattr(self.value, "__post_init__" if has_fields else "__init__", None)
        else:
            function = inspect.unwrap(_function(self.value))
        return function if inspect.isfunction(function) and _ours(function) else None

    @property
    def section(self) -> dict[str, str]:
        result = re.split(rf"^({'|'.join(SECTIONS)}):\n", self.text, flags=re.MULTILINE)
        # A section ends where the text goes on without indentation.
        bodies = [textwrap.dedent(re.split(r"\n(?=\S)", body)[0]) for body in result[2::2]]
        return {"": result[0], **dict(zip(result[1::2], bodies, strict=True))}

    @property
    def entries(self) -> dict[str, str]:
        """Argument to what is said of it."""
        text = self.section.get("Args", "") + "\n" + (self.section.get("Attributes", "") if self.is_record else "")
        parts = re.split(r"^(\w+(?:, \w+)*|Other arguments):\s", text, flags=re.MULTILINE)
        return {
            name: " ".join(message.split())
            for names, message in zip(parts[1::2], parts[2::2], strict=True)
            for name in names.split(", ")
        }

    @property
    def others(self) -> str | None:
        """What describes all parameters that have no entry, by the name that the docstring gives it."""
        line = OTHERS.search(self.section.get("Args", ""))
        return line[1] if line else None

    @property
    def is_record(self) -> bool:
        return dataclasses.is_dataclass(self.value) or (inspect.isclass(self.value) and issubclass(self.value, tuple))

    @property
    def annotations(self) -> dict[str, Any]:
        """Type of each parameter, and of "return"; text where only a type checker imports its names."""
        if self.is_record:
            signature, scope = inspect.signature(self.value), vars(importlib.import_module(self.value.__module__))
        elif self.function is None:
            return {}
        else:
            signature, scope = inspect.signature(self.function), self.function.__globals__
        result = {
            name: parameter.annotation for name, parameter in signature.parameters.items() if not name.startswith("_")
        }
        if not inspect.isclass(self.value):
            result["return"] = signature.return_annotation
        return {
            name: _resolved(annotation, scope) for name, annotation in result.items() if name not in ("self", "cls")
        }

    @property
    def parameters(self) -> list[str]:
        return [name for name in self.annotations if name != "return"]


def _function(value: Any) -> Any:
    """That of a method or property of any kind; what is neither, as it is."""
    value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    value = value.fget if isinstance(value, property) else value
    return value.func if isinstance(value, functools.cached_property) else value


def _ours(value: Any) -> bool:
    return value.__module__.split(".")[0] == "captum_density"


def _resolved(annotation: Any, scope: dict[str, Any]) -> Any:
    text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    if not isinstance(text, str):
        return annotation
    try:
        return eval(text, scope)
    except NameError:
        return text


def _holds(annotation: Any, *kinds: Any) -> bool:
    """Whether a value of this type is, or holds, one of these kinds; a function of them does not."""
    if isinstance(annotation, str):
        return "Tensor" in annotation
    if isinstance(annotation, typing.TypeVar):
        return any(_holds(constraint, *kinds) for constraint in annotation.__constraints__)
    origin = typing.get_origin(annotation)
    if origin in (Callable, typing.Literal):
        return False
    return origin in kinds or annotation in kinds or any(_holds(one, *kinds) for one in typing.get_args(annotation))


def _described_elsewhere(owner: object, function: object) -> bool:
    """Whether a method implements one whose documentation describes its arguments: Captum's, PyTorch's, a base's."""
    if not (inspect.isclass(owner) and inspect.isfunction(function)):
        return False
    bases = [base for base in owner.__mro__[1:] if function.__name__ in vars(base)]
    outside = any(base.__module__.split(".")[0] in ("captum", "torch") for base in bases)
    described = any("Args:" in (vars(base)[function.__name__].__doc__ or "") for base in bases if _ours(base))
    return described or (outside and function.__name__ not in ("attribute", "forward"))


def _members(name: str, owner: type) -> Iterator[Described]:
    """A class's own methods and properties, and those of its private bases, each described where it is defined."""
    for base in owner.__mro__:
        if _ours(base) and (base is owner or base.__name__ not in NAMES):
            for member, value in vars(base).items():
                if not member.startswith("_") and inspect.isfunction(_function(value)):
                    method = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                    yield Described(f"{name if base is owner else base.__name__}.{member}", method, base)


PUBLIC = [
    found.name
    for found in pkgutil.walk_packages([str(Path(captum_density.__file__).parent)], "captum_density.")
    if not any(part.startswith("_") for part in found.name.split("."))
]
NAMES = {name: getattr(module, name) for module in map(importlib.import_module, PUBLIC) for name in module.__all__}
OBJECTS = {name: Described(name, value) for name, value in NAMES.items() if callable(value)}
MEMBERS = {
    member.name: member for name, value in NAMES.items() if inspect.isclass(value) for member in _members(name, value)
}
EVERYTHING = OBJECTS | MEMBERS
# What no base describes.
DESCRIBED = {name: it for name, it in EVERYTHING.items() if not _described_elsewhere(it.owner, it.value)}


def _each(described: dict[str, Described]) -> Any:
    return pytest.mark.parametrize("it", described.values(), ids=described.keys())


@_each(EVERYTHING)
def test_has_a_docstring_of_its_own(it):
    assert it.text, f"{it.name} has no docstring"
    assert not it.text.startswith(f"{it.name}("), f"{it.name} has only what dataclass or NamedTuple made"


def _named(name: str, it: Described) -> Described | None:
    """What a docstring names: a public callable, with or without its namespace, or a method of the same class."""
    namespace, _, last = name.rpartition(".")
    name = last if namespace in PUBLIC else name
    return EVERYTHING.get(name) or EVERYTHING.get(f"{it.name.split('.')[0]}.{name}")


def _describes(it: Described, parameter: str, seen: tuple[str, ...] = ()) -> str | None:
    """The words that describe a parameter, here or where a docstring refers to; None where they end nowhere."""
    words = it.entries.get(parameter)
    referred = REFERENCE.match(words) if words else None
    name = referred[1] if referred else it.others if words is None else None
    there = _named(name, it) if name else None
    if there is None or there.name in (it.name, *seen):
        # "As `torch.optim.SGD`'s" describes: what is not ours is not looked up.
        ours = referred is not None and (there is not None or referred[1].startswith("captum_density"))
        return None if ours else words
    return _describes(there, parameter, (*seen, it.name))


@_each(DESCRIBED)
def test_arguments_are_described_and_tensors_have_shapes(it):
    words = {name: _describes(it, name) for name in it.parameters}
    missing = [name for name, text in words.items() if text is None]
    assert not missing, f"{it.name} does not describe {missing}, or refers to what does not"
    needless = it.others and set(it.parameters) <= it.entries.keys()
    assert not needless, f"{it.name} has no other arguments than those that it describes"
    shapeless = [
        name
        for name, annotation in it.annotations.items()
        if name != "return"
        and (_holds(annotation, Tensor, np.ndarray) or (name in NAMED and _holds(annotation, Any)))
        and not (SHAPE.search(f"{it.entries.get(name, '')} {words[name]}") or _captums_target(name, words[name]))
    ]
    assert not shapeless, f"{it.name} gives no shape of {shapeless}; the forms are those of SHAPE"


@pytest.mark.parametrize(
    ("text", "seed", "widths"),
    [
        ("Args:\n    seed: Of the draw.\n    Other arguments: As `diff_roar`.", "Of the draw.", None),
        ("Args:\n    Other arguments: As `captum_density.metrics.diff_roar`.", "Of everything that is drawn.", None),
        ("Args:\n    widths, seed: As `diff_roar`'s.", "Of everything that is drawn.", None),
        ("Args:\n    widths, seed: As `torch.rand`'s.", "As `torch.rand`'s.", "As `torch.rand`'s."),
        ("Args:\n    widths: As `captum_density.lost`.", None, None),
        ("Other arguments: As `diff_roar`.", None, None),
        ("Args:\n    seed: Of the draw.", "Of the draw.", None),
    ],
)
def test_references_between_docstrings_are_followed(text, seed, widths):
    def function(widths, seed): ...

    function.__doc__ = f"Draw.\n\n{text}\n"
    it = Described("function", function)
    assert (_describes(it, "seed"), _describes(it, "widths")) == (seed, widths)


def _captums_target(name: str, words: str) -> bool:
    return name == "target" and re.match("(y, a|A)s Captum's", words) is not None


@_each({name: it for name, it in DESCRIBED.items() if not inspect.isclass(it.value)})
def test_results_are_described_and_tensors_have_shapes(it):
    returns = it.annotations["return"]
    assert returns is not inspect.Signature.empty, f"{it.name} has no return annotation"
    if returns is None:
        return
    message = it.section.get("Returns") or it.section.get("Yields") or ("" if it.parameters else it.section[""])
    assert message, f"{it.name} does not say what it returns"
    if _holds(returns, Tensor, np.ndarray) or it.name.endswith(".attribute"):
        assert SHAPE.search(" ".join(message.split())), f"{it.name} does not give the shape of what it returns"


def _called(function: Callable[..., Any], owner: type | None, tree: ast.AST) -> Iterator[tuple[Any, type | None]]:
    """Functions of this package that a function calls by name, from `self`, or by making an object."""
    scope = dict(function.__globals__)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("captum_density"):
            module = importlib.import_module(node.module)
            scope |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if inspect.isclass(scope.get(name)):
                yield Described(name, scope[name]).function, scope[name]
            case ast.Name(id=name):
                yield scope.get(name), None
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if owner:
                yield getattr(owner, name, None), owner
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name) if owner:
                defined = [base.__qualname__ for base in owner.__mro__].index(function.__qualname__.rpartition(".")[0])
                after = owner.__mro__[defined + 1 :]
                yield next((vars(base)[name] for base in after if name in vars(base)), None), owner


def _can_raise(function: Any, owner: type | None, seen: set[Any]) -> bool:
    """Whether a `raise` of an error is met in a function of this package, or in what it calls."""
    function = inspect.unwrap(function) if callable(function) else None
    if not inspect.isfunction(function) or not _ours(function) or (function, owner) in seen:
        return False
    seen.add((function, owner))
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    if any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(tree)):
        return True
    return any(_can_raise(called, its_owner, seen) for called, its_owner in _called(function, owner, tree))


def _says_raises(it: Described) -> bool:
    """Whether its docstring does, that of the method of our own that it implements, or for `forward` its class."""
    if not it.owner or not inspect.isfunction(it.value):
        return "Raises" in it.section
    name, bases = it.value.__name__, [base for base in it.owner.__mro__ if _ours(base)]
    methods = [Described(name, vars(base)[name]) for base in bases if name in vars(base)]
    of_calls = Described(name, it.owner).section.get("Raises", "") if name == "forward" else ""
    return any("Raises" in method.section for method in methods) or "rom a call" in " ".join(of_calls.split())


@_each(EVERYTHING)
def test_errors_are_described(it):
    checks = it.name in DESCRIBED and it.parameters and it.name not in MADE_BY
    raises = _can_raise(it.function, it.value if inspect.isclass(it.value) else it.owner, set())
    if raises or (checks and not any(it.name in names for names in RAISES_NOTHING.values())):
        assert _says_raises(it), f"{it.name} does not say what it raises; or give it a line in RAISES_NOTHING"


def _cites(it: Described) -> bool:
    return bool(CITATION.search(" ".join(it.section.get("References", "").split())))


@_each(OBJECTS)
def test_papers_are_cited(it):
    if it.name not in MADE_BY and not any(it.name in names for names in NO_PAPER.values()):
        assert _cites(it), f"{it.name} has no References with an arXiv id or a title and a year"


def _has_example(it: Described) -> bool:
    lines = doctest.DocTestParser().get_examples(it.section.get("Example", ""))
    return bool(lines) and lines[0].source == "import torch\n" and bool(lines[-1].want)


@_each(OBJECTS)
def test_example_ends_in_what_can_be_checked(it):
    if it.name in MADE_BY:
        assert f"See `{MADE_BY[it.name]}`" in it.text, f"{it.name} does not name what makes it, {MADE_BY[it.name]}"
        assert "Example" in EVERYTHING[MADE_BY[it.name]].section
    else:
        assert _has_example(it), f"{it.name} has no example from `import torch` to an output"
        assert it.name in DOWNLOADS or "+SKIP" not in it.text, f"{it.name} has an example that is not run"


@_each(EVERYTHING)
def test_indented_blocks_are_introduced(it):
    """By ::, or the reference shows code and formulas as a quotation, in one line."""
    paragraphs = [part for part in re.split(r"\n[ ]*\n", it.section[""]) if part.strip()]
    for before, block in itertools.pairwise(paragraphs):
        if block.startswith("  "):
            assert before.endswith("::") or before.startswith("  "), f"{it.name}: write :: before {block.strip()!r}"


def test_exceptions_are_needed():
    silent = {name: EVERYTHING[name] for names in RAISES_NOTHING.values() for name in names}
    assert not [name for name, it in silent.items() if _says_raises(it) or not it.parameters or name in MADE_BY]
    assert not [name for names in NO_PAPER.values() for name in names if _cites(OBJECTS[name]) or name in MADE_BY]
    assert not [name for name in MADE_BY if _cites(OBJECTS[name]) or _has_example(OBJECTS[name])]
    assert not [name for name in DOWNLOADS if "+SKIP" not in OBJECTS[name].text]
