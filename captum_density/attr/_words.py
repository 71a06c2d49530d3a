"""Words out of sub-word tokens."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["words_of"]

_BEGINS = ("Ġ", "▁")  # a space before, as byte-level and SentencePiece tokenizers write it
_CONTINUES = "##"  # as WordPiece does
_ALONE = ("<", "[", "Ċ")  # special tokens, and a new line


def words_of(tokens: Sequence[str], words: Sequence[int | None] | None = None) -> tuple[list[int], list[str]]:
    """Which word each token belongs to, counted from 0, and the words.

    Args:
        tokens: The tokens, as the tokenizer writes them.
        words: A number for each, the same for those of a word; None for one that stands alone. Left out, the tokens'
            marks tell.

    Raises:
        ValueError: There are not as many numbers as tokens.
    """
    if words is not None and len(words) != len(tokens):
        raise ValueError(
            f"words must hold a number, or None, for each of {len(tokens)} positions, but holds {len(words)}; pass "
            "tokenizer(...).word_ids(), special tokens included"
        )
    marked = any(token.startswith(_BEGINS) for token in tokens)
    groups: list[int] = []
    names: list[str] = []
    for i, token in enumerate(tokens):
        if words is not None:
            joined = i > 0 and words[i] is not None and words[i] == words[i - 1]
        else:
            joined = i > 0 and _continues(token, tokens[i - 1], marked)
        text = token.removeprefix(_CONTINUES).lstrip("".join(_BEGINS)) or token
        if joined:
            names[-1] += text
        else:
            names.append(text)
        groups.append(len(names) - 1)
    return groups, names


def _continues(token: str, before: str, marked: bool) -> bool:
    if token.startswith(_CONTINUES):
        return True
    alone = token.startswith(_ALONE) or before.startswith(_ALONE)
    return marked and not alone and not token.startswith(_BEGINS)
