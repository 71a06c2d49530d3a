"""Errors as a report and a command line show them, and the words for what was received."""

__all__ = ["describe", "one_line"]


def one_line(error: BaseException) -> str:
    """An error's class and text in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


def describe(value: object) -> str:
    """What a value is, in words: "the class Saliency" or "an object of class Saliency"."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of class {type(value).__name__}"
