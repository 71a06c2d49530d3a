"""Mutants are single changes of statements, found again where a refactoring moved them."""

import pytest

from tests.experiments import mutants

SOURCE = '''
"""A module."""
LIMIT = 3


def area(size, *, twice=False):
    """The docstring's 1 < 2 stays."""
    size = abs(size)
    if size < LIMIT and not twice:
        raise ValueError(f"size must be at least {LIMIT - 0}")
    elif twice:
        size *= 2
    return max(size * size, 1)
'''


@pytest.fixture
def package(tmp_path):
    (tmp_path / "shapes.py").write_text(SOURCE)
    return tmp_path


def test_changes_are_of_code_and_not_of_texts(package):
    changes = {one.text: mutants.changes(one) for one in mutants.statements(package)}
    assert changes == {
        "size = abs(size)": [("removal", "pass"), ("argument", "size = size")],
        "if size < LIMIT and (not twice)": [
            ("condition", "if not (size < LIMIT and (not twice))"),
            ("condition", "if size < LIMIT or not twice"),
            ("comparison", "if size >= LIMIT and (not twice)"),
            ("condition", "if size < LIMIT and twice"),
        ],
        "raise ValueError(f'size must be at least {LIMIT - 0}')": [("removal", "pass")],
        "if twice": [("condition", "if not twice")],
        "size *= 2": [("removal", "pass"), ("arithmetic", "size /= 2"), ("constant", "size *= 3")],
        "return max(size * size, 1)": [
            ("argument", "return size * size"),
            ("arithmetic", "return max(size / size, 1)"),
            ("constant", "return max(size * size, 2)"),
        ],
    }


def test_every_change_compiles_in_its_place(package):
    for one in mutants.statements(package):
        for _, text in mutants.changes(one):
            changed = mutants._replaced(SOURCE, one, text)
            compile(changed, "shapes.py", "exec")
            assert changed != SOURCE
    assert "elif (not twice):" in mutants._replaced(SOURCE, mutants.statements(package)[3], "if not twice")
    probed = mutants._probed(SOURCE, list(enumerate(mutants.statements(package))))
    reached = []
    names = {"mutant_probe": reached.append}
    exec(probed, names)
    assert names["area"](-3, twice=True) == 36 and reached == [0, 1, 3, 4, 5]


def test_mutants_are_drawn_by_the_seed_and_found_again_where_they_moved(package):
    drawn = mutants.draw(package, 4, seed=0)
    assert drawn == mutants.draw(package, 4, seed=0) != mutants.draw(package, 4, seed=1)
    (package / "geometry").mkdir()
    (package / "shapes.py").rename(package / "geometry" / "areas.py")
    moved = [mutants.locate(one, mutants.statements(package)) for one in drawn]
    assert [one.text for one in moved] == [one["statement"] for one in drawn]
    lost = {**drawn[0], "statement": "if size <= LIMIT"}
    assert mutants.locate(lost, mutants.statements(package)) is None
    by_hand = lost | {"now": {"statement": "size *= 2", "mutant": "pass"}}
    assert mutants.locate(by_hand, mutants.statements(package)).text == "size *= 2"
