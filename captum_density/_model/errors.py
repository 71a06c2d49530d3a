"""Errors as a report and a command line show them."""

__all__ = ["one_line"]


def one_line(error: BaseException) -> str:
    """An error's class and text in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"
