"""README is short, and its commands are where CI looks for them."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import captum_density

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["main job", "tests", "tutorials", "documentation"])
def test_ci_runs_the_command_of_the_readme(name):
    commands = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*?)```", README, flags=re.DOTALL)
    assert len(commands) == 1 and commands[0].count("\n") == 1, f"expected one command {name!r}, of one line"
    printed = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--print", name],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    ).stdout
    assert printed == commands[0]


def test_first_sentence_is_the_package_s():
    assert captum_density.__doc__.split(":")[0] in README


def test_is_short():
    assert len(README.splitlines()) <= 200


def test_every_namespace_has_its_row_and_its_page():
    namespaces = {name for name in dir(captum_density) if not name.startswith("_")}
    assert set(re.findall(r"^\| `captum_density\.(\w+)` \|", README, flags=re.MULTILINE)) == namespaces
    index = (ROOT / "tutorials" / "api" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"captum_density\.(\w+)$", index, flags=re.MULTILINE)) == namespaces
