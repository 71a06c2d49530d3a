"""Faults of devices can be planted as long as what they change is there; a GPU's tests catch them."""

import pytest

from tests.experiments.device_faults import FAULTS, PACKAGE, ROOT, main, planted


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_is_planted_where_what_it_changes_stands(fault):
    text = (ROOT / PACKAGE / fault.file).read_text(encoding="utf-8")
    compile(planted(fault, text), fault.file, "exec")


def test_what_stands_elsewhere_is_asked_for():
    with pytest.raises(ValueError, match="say where it is now"):
        planted(FAULTS[0], "device = None")


@pytest.mark.cuda
@pytest.mark.slow
def test_every_fault_is_caught():
    assert main([]) == 0
