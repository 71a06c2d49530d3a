"""The list is of tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("README.md").read_text(encoding="utf-8")


def test_commands_name_what_is_there():
    paths = re.findall(r"tests/[\w/.]+\.py", LIST)
    modules = [name.replace(".", "/") + ".py" for name in re.findall(r"python -m ([\w.]+)", LIST)]
    assert len(paths) > 5 and len(modules) > 1
    assert not [path for path in [*paths, *modules] if not (ROOT / path).is_file()]


def test_every_file_of_the_folder_is_listed():
    files = {path.name for path in Path(__file__).parent.glob("*.py")} - {Path(__file__).name, "conftest.py"}
    listed = {
        re.sub(r"tests\.acceptance\.(\w+)", r"\1.py", one) for one in re.findall(r"[\w.]*acceptance[./][\w.]+", LIST)
    }
    assert files <= {name.rpartition("/")[2] for name in listed}
