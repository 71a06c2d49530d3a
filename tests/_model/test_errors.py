"""Errors as one line of a report."""

from captum_density._model.errors import one_line


def test_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "ValueError: a b c"
    assert one_line(ValueError("y" * 300)) == "ValueError: " + "y" * 300
    assert one_line(ValueError("y" * 301)) == "ValueError: " + "y" * 297 + "..."
