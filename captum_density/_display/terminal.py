"""Text for a terminal."""

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""The same with what would move a cursor, or change colors, spelt out: names of files and classes may hold it.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
