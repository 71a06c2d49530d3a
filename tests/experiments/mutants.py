"""How many small faults, put into the package at random, the tests catch: drawn once, the same after a refactoring.

    python -m tests.experiments.mutants draw --root OLD --number 70 --seed 15   # choose, of the package in OLD
    python -m tests.experiments.mutants run --root OLD --column before
    python -m tests.experiments.mutants locate                                  # where they are now, and which are lost
    python -m tests.experiments.mutants run --column after
    python -m tests.experiments.mutants table

A mutant is a statement of a function (a condition or an iterable counts as one) with one change: a comparison flipped,
an arithmetic operation swapped, a number or a bool changed, a condition negated, a statement removed, a call replaced
by its first argument. Docstrings, texts, annotations and what stands outside functions stay as they are.

`run` lets the tests tell which of them reach which mutant, by a probe before each statement, in a copy of the tree.
Then each mutant is tried alone on tests that reach it, fastest first, up to the first that fails. Survivors are either
equivalent to the code (a note says so) or a gap in the tests.

After a refactoring a mutant is the one whose function and statement have the same text, wherever they stand now; those
that were rewritten are given an equivalent by hand, in the field "now", or null with a note where what they changed is
gone. Everything is in results/mutants.json; `run` may be interrupted and goes on where it was.
"""

import argparse
import ast
import contextlib
import copy
import difflib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

RESULTS = Path(__file__).parent / "results" / "mutants.json"
PACKAGE = "captum_density"
SECONDS = 25  # of CPU for a mutant, as its tests took without it
LIMIT = 10  # of CPU for a test, or it is not among them

FLIPS = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
}
# Whose first argument is no value like theirs, so that any test would fail.
OTHER_KIND = {"isinstance", "issubclass", "len", "range", "zip", "enumerate", "hasattr", "getattr", "str", "repr"}


class Statement(NamedTuple):
    """What may be changed as one: a simple statement, a condition, or what a loop runs over."""

    file: str
    function: str
    keyword: str
    node: ast.expr | ast.stmt
    parameters: frozenset[str]

    @property
    def text(self) -> str:
        return f"{self.keyword} {ast.unparse(self.node)}".strip()


def statements(package: Path) -> list[Statement]:
    """Of all functions of a package, in the order of its files."""
    return [
        one
        for path in sorted(package.rglob("*.py"))
        for one in _within(
            ast.parse(path.read_text(encoding="utf-8")).body, path.relative_to(package).as_posix(), "", None
        )
    ]


def _within(body: Sequence[ast.stmt], file: str, outer: str, parameters: frozenset[str] | None) -> Iterator[Statement]:
    for node in body:
        match node:
            case ast.FunctionDef(args=taken) | ast.AsyncFunctionDef(args=taken):
                names = frozenset(one.arg for one in [*taken.posonlyargs, *taken.args, *taken.kwonlyargs])
                yield from _within(node.body, file, f"{outer}.{node.name}".strip("."), names)
                continue
            case ast.ClassDef():
                yield from _within(node.body, file, f"{outer}.{node.name}".strip("."), None)
                continue
            case ast.If() | ast.While() if parameters is not None:
                keyword = "if" if isinstance(node, ast.If) else "while"
                yield Statement(file, outer, keyword, node.test, parameters)
            case ast.For() if parameters is not None:
                yield Statement(file, outer, f"for {ast.unparse(node.target)} in", node.iter, parameters)
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Expr(value=ast.Constant()):
                continue
            case ast.With() | ast.Try() | ast.Match():
                pass
            case _ if parameters is not None and not hasattr(node, "body"):
                yield Statement(file, outer, "", node, parameters)
        inner = [getattr(node, field, []) for field in ("body", "orelse", "finalbody")]
        inner += [handler.body for handler in getattr(node, "handlers", [])]
        inner += [case.body for case in getattr(node, "cases", [])]
        for one in inner:
            yield from _within(one, file, outer, parameters)


def _changeable(node: ast.AST) -> Iterator[ast.AST]:
    """The node and those below it, but for texts, annotations, errors and warnings."""
    yield node
    for field, value in ast.iter_fields(node):
        if field == "annotation" or (isinstance(node, ast.Raise) and field == "exc"):
            continue
        for child in value if isinstance(value, list) else [value]:
            called = child.func if isinstance(child, ast.Call) else None
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr) and _last(called) != "warn":
                yield from _changeable(child)


def _last(function: ast.AST | None) -> str:
    return ast.unparse(function).rpartition(".")[2] if function else ""


def changes(statement: Statement) -> list[tuple[str, str]]:
    """Each change of a statement: its operator, and the statement's text with it ("pass" where it is removed)."""
    found = [(operator, _text(statement, changed)) for operator, changed in _changed(statement)]
    return [(operator, text) for operator, text in found if text != statement.text]


def _text(statement: Statement, changed: ast.AST | None) -> str:
    if changed is None:
        return "pass"
    return f"{statement.keyword} {ast.unparse(ast.fix_missing_locations(changed))}".strip()


def _changed(statement: Statement) -> Iterator[tuple[str, ast.AST | None]]:
    node = statement.node
    if statement.keyword in ("if", "while"):
        yield "condition", ast.UnaryOp(ast.Not(), node)
    if not statement.keyword and _removable(node, statement.parameters):
        yield "removal", None
    for index in range(sum(1 for _ in _changeable(node))):
        for operator, number in [(operator, n) for operator in OPERATORS for n in range(2)]:
            whole = ast.Module([ast.Expr(copy.deepcopy(node))], []) if isinstance(node, ast.expr) else None
            root = whole.body[0] if whole else copy.deepcopy(node)  # type: ignore[attr-defined]
            nodes = list(_changeable(root.value if whole else root))  # type: ignore[attr-defined]
            new = OPERATORS[operator](nodes[index], number)
            if new is None or (operator == "argument" and isinstance(root, ast.Expr) and nodes[index] is root.value):
                continue
            root = _Replace(nodes[index], new).visit(root)
            yield operator, root.value if whole else root  # type: ignore[attr-defined]


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else super().visit(node)


def _removable(node: ast.AST, parameters: frozenset[str]) -> bool:
    match node:
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete():
            return True
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in parameters
    return False


def _comparison(node: ast.AST, number: int) -> ast.AST | None:
    if isinstance(node, ast.Compare) and number < len(node.ops):
        node.ops[number] = FLIPS[type(node.ops[number])]()
        return node
    return None


def _arithmetic(node: ast.AST, number: int) -> ast.AST | None:
    if number == 0 and isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in SWAPS:
        text = isinstance(node, ast.BinOp) and any(
            isinstance(one, ast.JoinedStr) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
            for one in (node.left, node.right)
        )
        node.op = SWAPS[type(node.op)]()
        return None if text else node
    return None


def _constant(node: ast.AST, number: int) -> ast.AST | None:
    if number or not isinstance(node, ast.Constant):
        return None
    match node.value:
        case bool(value):
            return ast.Constant(not value)
        case int(value):
            return ast.Constant(value + 1)
        case float(value):
            return ast.Constant(value * 2 if value else 1.0)
    return None


def _condition(node: ast.AST, number: int) -> ast.AST | None:
    match node:
        case ast.IfExp() if number == 0:
            node.test = ast.UnaryOp(ast.Not(), node.test)
            return node
        case ast.BoolOp() if number == 0:
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            return node
        case ast.UnaryOp(op=ast.Not()) if number == 0:
            return node.operand
        case ast.comprehension() if number < len(node.ifs):
            node.ifs[number] = ast.UnaryOp(ast.Not(), node.ifs[number])
            return node
    return None


def _argument(node: ast.AST, number: int) -> ast.AST | None:
    if number == 0 and isinstance(node, ast.Call) and node.args and _last(node.func) not in OTHER_KIND:
        return None if isinstance(node.args[0], ast.Starred | ast.GeneratorExp) else node.args[0]
    return None


OPERATORS = {
    "comparison": _comparison,
    "arithmetic": _arithmetic,
    "constant": _constant,
    "condition": _condition,
    "argument": _argument,
}


def draw(package: Path, number: int, seed: int) -> list[dict[str, Any]]:
    """Mutants of different statements: each statement alike, then each operator that fits it, then each change."""
    generator = random.Random(seed)
    candidates = statements(package)
    order = generator.sample(range(len(candidates)), len(candidates))
    drawn = {}
    while len(drawn) < number:
        index = order.pop()
        one = candidates[index]
        found = changes(one)
        if not found:
            continue
        operator = generator.choice(sorted({operator for operator, _ in found}))
        earlier = [other for other in candidates[:index] if (other.file, other.function) == (one.file, one.function)]
        drawn[index] = {
            "file": one.file,
            "function": one.function,
            "statement": one.text,
            "occurrence": sum(other.text == one.text for other in earlier),
            "operator": operator,
            "mutant": generator.choice([text for name, text in found if name == operator]),
        }
    return [drawn[index] for index in sorted(drawn)]


def locate(mutant: dict[str, Any], candidates: Sequence[Statement]) -> Statement | None:
    """Where a mutant's statement, or what stands for it by hand, is now."""
    wanted = {**mutant, **mutant["now"]} if mutant.get("now") else mutant
    same = [one for one in candidates if one.text == wanted["statement"]]
    name, stem = wanted["function"], Path(wanted["file"]).name
    for fits in (
        lambda one: (one.file, one.function) == (wanted["file"], name),
        lambda one: (Path(one.file).name, one.function) == (stem, name),
        lambda one: one.function == name,
        lambda one: one.function.rpartition(".")[2] == name.rpartition(".")[2],
    ):
        there = [one for one in same if fits(one)]
        if there:
            return there[min(wanted["occurrence"], len(there) - 1)]
    return same[0] if len(same) == 1 else None


def _replaced(source: str, statement: Statement, text: str) -> str:
    """A file's source with another text in a statement's place."""
    node, lines = statement.node, source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None and node.end_col_offset is not None
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    text = f"({text.removeprefix(statement.keyword).strip()})" if statement.keyword else text
    # Texts that span lines are no problem to the parser, as unparse writes them with escapes.
    return (before + text.encode() + after).decode()


def _probed(source: str, here: Sequence[tuple[int, Statement]]) -> str:
    """A file's source in which each of these statements says that it is reached."""
    for number, one in sorted(here, key=lambda pair: (pair[1].node.lineno, pair[1].node.col_offset), reverse=True):
        own = ast.get_source_segment(source, one.node)
        probe = f"mutant_probe({number})"
        text = f"({probe}, {own})[1]" if one.keyword else f"{probe}; {own}"
        source = _replaced(source, one, text)
    return source


# Python runs sitecustomize of every process that a test starts, too.
PROBE = """
import builtins, os
seen = set()
def mutant_probe(number):
    key = f"{number}\\t{os.environ.get('PYTEST_CURRENT_TEST', '')}"
    if key not in seen:
        seen.add(key)
        with open(os.environ["MUTANT_HITS"], "a") as file:
            file.write(key + "\\n")
builtins.mutant_probe = mutant_probe
"""


class Tree:
    """A copy of the repository, in which files are changed and tests run in forks of this process."""

    def __init__(self, root: Path, where: Path) -> None:
        self.root, self.log, self.clock = where / "tree", where / "pytest.txt", int(time.time())
        if not self.root.exists():
            shutil.copytree(root, self.root, ignore=shutil.ignore_patterns(".*", "__pycache__"))

    def write(self, file: str, source: str) -> str:
        """Change a file of the package; returns what was there."""
        path = self.root / PACKAGE / file
        old = path.read_text(encoding="utf-8")
        path.write_text(source, encoding="utf-8")
        # Byte code is told from newer source by its time in whole seconds.
        self.clock += 2
        os.utime(path, (self.clock, self.clock))
        return old

    def pytest(self, arguments: Sequence[str], plugin: object, seconds: int) -> int:
        """The exit code of pytest; a negative one where it took more CPU than these seconds, or six times as long."""
        child = os.fork()
        if not child:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            os.chdir(self.root)
            with open(self.log, "w") as log:
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
            sys.path[:] = [path for path in sys.path if path]
            code = 3
            try:
                options = ["-q", "-n0", "-p", "no:cacheprovider", "--tb=line"]
                options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
                code = pytest.main([*options, *arguments], plugins=[plugin])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(code))
        until = time.time() + 6 * seconds
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done or time.time() > until:
                break
            time.sleep(0.05)
        # Workers that a test started go with it.
        if not done or os.WIFSIGNALED(status):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        if not done:
            os.waitpid(child, 0)
            return -1
        return os.waitstatus_to_exitcode(status)


class TooSlow(BaseException):
    """Not an Exception, which hypothesis would try to simplify."""


class Recorder:
    """Writes each test that passes within `LIMIT` seconds, with the CPU that it took."""

    def __init__(self, path: Path) -> None:
        self.path, self.start, self.failed = path, 0.0, False

    def pytest_runtest_logstart(self) -> None:
        self.start, self.failed = sum(os.times()[:4]), False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            raise TooSlow

        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.outcome != "passed"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if not self.failed:
            with open(self.path, "a") as file:
                file.write(json.dumps([nodeid, round(sum(os.times()[:4]) - self.start, 3)]) + "\n")


class Selection:
    """Runs these tests, in their order, until one fails, whose name it writes."""

    def __init__(self, tests: Sequence[str], path: Path) -> None:
        self.order, self.path = {test: number for number, test in enumerate(tests)}, path

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        items[:] = sorted((one for one in items if one.nodeid in self.order), key=lambda one: self.order[one.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.path.write_text(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.path.write_text(f"import of {report.nodeid}")


def reach(tree: Tree, where: Path, located: Sequence[tuple[int, Statement]]) -> dict[int, dict[str, float]]:
    """Of each mutant the tests that reach its statement, with the CPU seconds that they take."""
    hits, passed = where / "hits.txt", where / "passed.txt"
    if not (where / "reached").exists():
        for path in (hits, passed):
            path.write_text("")
        (where / "site").mkdir(exist_ok=True)
        (where / "site" / "sitecustomize.py").write_text(PROBE)
        os.environ |= {"PYTHONPATH": str(where / "site"), "MUTANT_HITS": str(hits)}
        exec(PROBE, {})
        old = {}
        for file in {one.file for _, one in located}:
            here = [(number, one) for number, one in located if one.file == file]
            source = (tree.root / PACKAGE / file).read_text(encoding="utf-8")
            old[file] = tree.write(file, _probed(source, here))
        code = tree.pytest([], Recorder(passed), 4000)
        del os.environ["PYTHONPATH"]
        for file, source in old.items():
            tree.write(file, source)
        if code not in (0, 1):
            raise RuntimeError(f"the tests did not run to their end: pytest's exit code was {code}")
        (where / "reached").touch()
    seconds = dict(map(json.loads, passed.read_text().splitlines()))
    reached: dict[int, dict[str, float]] = {number: {} for number, _ in located}
    for number, current in (line.split("\t") for line in hits.read_text().splitlines()):
        test, _, phase = current.rpartition(" ")
        # A fixture may serve all tests of its file.
        tests = [one for one in seconds if one.split("::")[0] == test.split("::")[0]] if phase == "(setup)" else [test]
        reached[int(number)] |= {one: seconds[one] for one in tests if one in seconds}
    return reached


def attempt(tree: Tree, where: Path, mutant: dict[str, Any], statement: Statement, tests: dict[str, float]) -> Any:
    """Whether the tests that reach a mutant catch it, and which does."""
    chosen: dict[str, float] = {}
    for test in sorted(tests, key=lambda one: tests[one]):
        if not chosen or sum(chosen.values()) + tests[test] <= SECONDS:
            chosen[test] = tests[test]
    if not chosen:
        return {"outcome": "not reached"}
    # The files in the order of what they take, each with its tests together.
    seconds: Counter[str] = Counter()
    for test in chosen:
        seconds[test.split("::")[0]] += chosen[test]  # type: ignore[assignment]
    order = sorted(chosen, key=lambda test: (seconds[test.split("::")[0]], test))
    by = where / "by.txt"
    by.unlink(missing_ok=True)
    source = (tree.root / PACKAGE / statement.file).read_text(encoding="utf-8")
    text = {**mutant, **(mutant.get("now") or {})}["mutant"]
    tree.write(statement.file, _replaced(source, statement, text))
    code = tree.pytest(["-x", *seconds], Selection(order, by), 60 + int(3 * sum(chosen.values())))
    tree.write(statement.file, source)
    outcome: dict[str, Any] = {"outcome": "survived" if code == 0 else "caught"}
    if code:
        outcome["by"] = by.read_text() if by.exists() else f"pytest ended with {code}"
    elif len(chosen) < len(tests):
        outcome["slow tests left out"] = len(tests) - len(chosen)
    return outcome | {"tests": len(chosen)}


def _preload() -> None:
    """What tests import of other packages, once for all forks; no plugin of pytest and nothing of this package."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "CI": "1"}
    for name in ("captum.attr", "matplotlib.pyplot", "sklearn.datasets", "torchvision", "transformers.modeling_utils"):
        importlib.import_module(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, locate or run mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["draw", "locate", "run", "table"])
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[2], help="a checkout; this one if not given"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--number", type=int, default=70)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--column", default="after", help="before or after, in the results")
    parser.add_argument("--scratch", type=Path, help="a folder to work in, kept; a new one if not given")
    given = parser.parse_args(arguments)
    if given.command == "draw":
        found = {"seed": given.seed, "mutants": draw(given.root / PACKAGE, given.number, given.seed)}
        given.results.parent.mkdir(exist_ok=True)
        _save(given.results, found)
        return
    results = json.loads(given.results.read_text())
    mutants = results["mutants"]
    if given.command == "table":
        for column in ("before", "after"):
            print(column, dict(Counter(one[column]["outcome"] for one in mutants if column in one)))
        for one in mutants:
            outcomes = [one.get(column, {}).get("outcome", "-") for column in ("before", "after")]
            if set(outcomes) != {"caught"}:
                print(*outcomes, one["file"], one["function"], f"{one['statement']!r} -> {one['mutant']!r}", sep=" | ")
        return
    candidates = statements(given.root / PACKAGE)
    before = given.column == "before"
    wanted = [{**one, "now": None} if before else one for one in mutants]
    places = [None if "now" in one and one["now"] is None and not before else locate(one, candidates) for one in wanted]
    if given.command == "locate":
        _print_lost(mutants, places, candidates)
        return
    where = given.scratch or Path(tempfile.mkdtemp())
    where.mkdir(exist_ok=True, parents=True)
    _preload()
    tree = Tree(given.root, where)
    located = [(number, place) for number, place in enumerate(places) if place]
    reached = reach(tree, where, located)
    for number, place in located:
        if given.column not in mutants[number]:
            outcome = attempt(tree, where, wanted[number], place, reached[number])
            mutants[number][given.column] = outcome
            _save(given.results, results)
            print(number, outcome, flush=True)


def _print_lost(mutants: list[dict[str, Any]], places: list[Any], candidates: Sequence[Statement]) -> None:
    for number, (one, place) in enumerate(zip(mutants, places, strict=True)):
        if place or ("now" in one and one["now"] is None):
            continue
        print(f"{number}: {one['file']} {one['function']}\n    {one['statement']}\n    -> {one['mutant']}")
        alike = difflib.get_close_matches(one["statement"], {other.text for other in candidates}, 3, 0.5)
        for other in candidates:
            if other.text in alike:
                print(f"        ? {other.file} {other.function}: {other.text}")
    print(f"{sum(1 for place in places if place)} of {len(places)} are located")


def _save(path: Path, results: dict[str, Any]) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False)
    path.write_text(re.sub(r'\{\s*("outcome".*?)\s*\}', r"{\1}", text, flags=re.DOTALL) + "\n")


if __name__ == "__main__":
    main()
