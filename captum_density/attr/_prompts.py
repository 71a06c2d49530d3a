"""What a language model is given, and which of its outputs are explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._model.validation import examples_first, received
from captum_density.attr._ledger import LedgerTarget

__all__ = ["PARTS", "Outputs", "Prompt", "Question", "look_up", "prompt_of", "question_of"]

PARTS = ("get_encoder", "get_decoder")

# -- what the model is given


@dataclass(frozen=True)
class Prompt:
    """What a model is given.

    Attributes:
        embeddings: (N, L, E) by the names of the model's arguments, "" where it has no such name.
        others: What else it is given, by name.
        ids: (N, L) of each of the embeddings, None where they are not known.
        mask: (N, L) of the last of them, from which logits come.
    """

    embeddings: dict[str, Tensor]
    others: dict[str, Any]
    ids: list[Tensor | None]
    mask: Tensor

    @property
    def n(self) -> int:
        return len(self.mask)

    @property
    def device(self) -> torch.device:
        return next(iter(self.embeddings.values())).device

    @property
    def offset(self) -> int:
        """How many positions stand before those that logits come from."""
        return sum(x.size(1) for x in list(self.embeddings.values())[:-1])

    def masks(self) -> list[Tensor]:
        """(N, L) of each of the embeddings, where its tokens are, on the host."""
        result = [torch.ones(x.shape[:2], dtype=torch.bool, device="cpu") for x in self.embeddings.values()]
        first = self.others.get("attention_mask")
        if isinstance(first, Tensor) and first.shape == result[0].shape:
            result[0] = first.bool().cpu()
        return [*result[:-1], self.mask]

    def words(self, name: Callable[[list[int]], list[str]]) -> list[list[str]]:
        """The tokens of each row."""
        parts = [
            [[str(p) for p in range(x.size(1))]] * self.n if ids is None else [name(row) for row in ids.tolist()]
            for x, ids in zip(self.embeddings.values(), self.ids, strict=True)
        ]
        return [[word for part in parts for word in part[row]] for row in range(self.n)]


def prompt_of(
    model: Callable[..., Any],
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> Prompt:
    takes = _arguments(model)
    others = {name: value for name, value in kwargs.items() if value is not None}
    if "labels" in others:
        raise ValueError("labels make a loss, and a ledger explains logits; leave them out, and say targets=...")
    embeddings, ids = _embeddings(model, "get_encoder", input_ids, inputs_embeds, "input_ids", "inputs_embeds")
    by_name = "inputs_embeds" in takes or hasattr(model, "get_input_embeddings")
    named = {"inputs_embeds" if by_name else "": embeddings}
    of_inputs = [ids]
    mask = attention_mask
    if attention_mask is not None:
        others["attention_mask"] = attention_mask
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        start = others.pop("decoder_input_ids", None)
        given = others.pop("decoder_inputs_embeds", None)
        if start is None and given is None:
            begin = getattr(model.config, "decoder_start_token_id", None)  # type: ignore[attr-defined]
            if begin is None:
                raise ValueError("the model's configuration names no decoder_start_token_id; pass decoder_input_ids")
            start = torch.full((len(embeddings), 1), begin, device=embeddings.device)
        names = "decoder_input_ids", "decoder_inputs_embeds"
        named["decoder_inputs_embeds"], ids = _embeddings(model, "get_decoder", start, given, *names)
        of_inputs.append(ids)
        mask = others.get("decoder_attention_mask")
    last = list(named.values())[-1]
    if mask is None or mask.ndim != 2:
        mask = torch.ones(last.shape[:2], dtype=torch.bool, device=last.device)
    elif mask.shape != last.shape[:2]:
        raise ValueError(f"the attention mask must be of shape {tuple(last.shape[:2])}, but is {tuple(mask.shape)}")
    mask = mask.bool()
    if not bool(mask.any(1).all()):
        empty = int(mask.any(1).int().argmin())
        raise ValueError(f"row {empty} of the attention mask is all padding, and has no logit to explain; leave it out")
    if "position_ids" in takes and "position_ids" not in others and len(named) == 1 and not bool(mask[:, 0].all()):
        others["position_ids"] = _position_ids(model, mask)
    if "use_cache" in takes:
        others.setdefault("use_cache", False)
    return Prompt(named, others, of_inputs, mask.cpu())


def _arguments(model: Callable[..., Any]) -> frozenset[str]:
    """The names of a model's arguments."""
    model = getattr(model, "module", model)  # FullyShardedDataParallel's
    function = model.forward if isinstance(model, nn.Module) else model
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return frozenset()


def _embeddings(
    model: Any, part: str, ids: Tensor | None, given: Tensor | None, ids_name: str, given_name: str
) -> tuple[Tensor, Tensor | None]:
    """(N, L, E) embeddings, and the ids that they are of."""
    if (ids is None) == (given is None):
        raise TypeError(f"pass either {ids_name} or {given_name}, not {'both' if given is not None else 'neither'}")
    if given is not None:
        if not isinstance(given, Tensor) or given.ndim != 3:
            raise ValueError(f"{given_name} must be a tensor (N, L, E), but is {_shown_shape(given)}")
        return given, None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        unpack = "; pass its entries by name, attribute(**encoding)" if isinstance(ids, Mapping) else ""
        raise ValueError(f"{ids_name} must be a tensor (N, L) of token ids, but is {_shown_shape(ids)}{unpack}")
    if not ids.size(1):
        raise ValueError(f"{ids_name} must hold at least one token for each row, but is {_shown_shape(ids)}")
    return look_up(model, part, ids, given_name), ids


def look_up(model: Any, part: str, ids: Tensor, instead: str) -> Tensor:
    """(N, L, E) embeddings of ids, by the model's own table, or by that of a part of an encoder-decoder model.

    Raises:
        TypeError: The model has none.
    """
    owner = model
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        owner = getattr(model, part)()
    find = getattr(owner, "get_input_embeddings", None)
    if find is None:
        raise TypeError(f"the model has no input embeddings (get_input_embeddings); pass {instead} in place of ids")
    with torch.no_grad():
        return find()(ids)


def _shown_shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _position_ids(model: Callable[..., Any], mask: Tensor) -> Tensor:
    """Positions that count real tokens alone, from where the model begins to count."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    tables = [getattr(module, "position_embeddings", None) for module in modules]
    padding = [table.padding_idx for table in tables if isinstance(table, nn.Embedding) and table.padding_idx]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return positions + padding[0] + 1 if padding else positions


# -- what is explained


@dataclass
class Question:
    """What is explained, K tokens of each row.

    Attributes:
        at: (N, K) where logits are read.
        tokens: (N, K) of what; None for the largest, until the model has run.
        valid: (N, K) whether there is one: rows may have fewer.
        contrast: (N, K), None without.
        log_prob: Whether log-probabilities are explained.
        explicit: Whether positions were named.
    """

    at: Tensor
    tokens: Tensor | None
    valid: Tensor
    contrast: Tensor | None
    log_prob: bool
    explicit: bool


def question_of(prompt: Prompt, targets: Any, positions: Any, contrast: Any, log_prob: bool) -> Question:
    n, length = prompt.mask.shape
    mask, ids = prompt.mask, prompt.ids[-1]
    if isinstance(targets, slice):
        if positions is not None:
            raise ValueError("a slice of targets says where logits are read; leave positions out")
        if ids is None:
            raise ValueError("a slice of targets needs token ids, of which it takes some; pass ids, not embeddings")
        columns = torch.arange(length, device="cpu")[targets]
        if not len(columns) or int(columns.min()) < 1:
            raise ValueError(
                f"a slice of targets must hold positions from 1 to {length - 1}, each explained from the one before, "
                f"but {targets} holds {columns.tolist()}"
            )
        at, valid = (columns - 1).expand(n, -1), mask[:, columns] & mask[:, columns - 1]
        if not bool(valid.any(1).all()):
            raise ValueError(f"row {int(valid.any(1).int().argmin())} has no token at {targets} that is no padding")
        return Question(at, ids.cpu()[:, columns], valid, _tokens(contrast, n, at.size(1)), log_prob, True)
    tokens = None if isinstance(targets, str) else _tokens(targets, n)
    if isinstance(targets, str) and targets != "next":
        raise ValueError(f'targets must be "next", token ids or a slice, but is {targets!r}')
    if positions is None:
        at = (mask.long() * torch.arange(length, device="cpu")).argmax(1, keepdim=True)
    else:
        at = _integers(positions, "positions")
        at = at.reshape(1, -1).expand(n, -1) if at.ndim < 2 else at
        if at.shape[0] != n or bool((at < -length).any()) or bool((at >= length).any()):
            raise ValueError(f"positions must be K integers, or (N, K), below {length}, but are {positions!r}")
        at = at % length
        if not bool(mask.gather(1, at).all()):
            raise ValueError("positions must be those of tokens, but the attention mask is 0 at one of them")
    against = None if contrast is None else _tokens(contrast, n)
    counts = {t.size(1) for t in (at, tokens, against) if t is not None and t.size(1) > 1}
    if len(counts) > 1:
        raise ValueError(f"targets, positions and contrast must be as many for each row, but are {sorted(counts)}")
    k = max(counts, default=1)
    tokens = None if tokens is None else tokens.expand(n, k)
    against = None if against is None else against.expand(n, k)
    valid = torch.ones(n, k, dtype=torch.bool, device="cpu")
    return Question(at.expand(n, k), tokens, valid, against, log_prob, positions is not None)


def _integers(values: Any, name: str) -> Tensor:
    try:
        result = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        result = torch.empty(0, 0, 0, device="cpu")
    if result.is_floating_point() or result.is_complex() or result.ndim > 2 or result.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, one for all rows, (N,) or (N, K), but are {values!r}")
    return result.long()


def _tokens(values: Any, n: int, k: int = 1) -> Tensor | None:
    """(N, 1) or (N, K) ids."""
    if values is None:
        return None
    ids = _integers(values, "token ids")
    ids = ids.expand(n) if ids.ndim == 0 else ids
    ids = ids.unsqueeze(1) if ids.ndim == 1 else ids
    if len(ids) != n or bool((ids < 0).any()):
        raise ValueError(f"token ids must be one for all rows, (N,) or (N, K) for {n} rows, at least 0, not {values!r}")
    return ids.expand(n, k) if ids.size(1) == 1 else ids


class Outputs:
    """The model as a function of its embeddings (N, L, E), whose outputs (N, K) are what is explained."""

    def __init__(self, view: Callable[..., Any], model: Callable[..., Any], prompt: Prompt, question: Question):
        self.question, self._view, self._prompt = question, view, prompt
        self._columns: Tensor | None = None
        if "logits_to_keep" in _arguments(model) and "logits_to_keep" not in prompt.others:
            self._columns = torch.unique(question.at)
        self._one_each = False
        self._table = self._table_of_ids(model)

    def _table_of_ids(self, model: Any) -> nn.Module | None:
        """The input embeddings, of a model whose outputs (N, C) are others where it knows its ids.

        A decoder that classifies answers at the last token, which it finds by the ids of padding on the right.
        """
        prompt, table = self._prompt, getattr(model, "get_input_embeddings", lambda: None)()
        (ids, *others) = prompt.ids
        is_padded = not bool(prompt.mask[:, -1].all())
        if others or ids is None or table is None or not is_padded or "" in prompt.embeddings:
            return None
        arguments = _arguments(model)
        if "input_ids" not in arguments or "logits_to_keep" in arguments:  # the latter has logits of each position
            return None
        with torch.no_grad():
            of_ids = _logits(model(input_ids=ids, **prompt.others), prompt.n)
            if of_ids.ndim != 2:
                return None
            of_embeddings = _logits(model(**prompt.embeddings, **prompt.others), prompt.n)
        scale = 1e-3 * float(of_ids.abs().max())
        return None if torch.allclose(of_ids, of_embeddings, rtol=1e-3, atol=scale) else table

    def __call__(self, *tensors: Any) -> Tensor:
        count = len(self._prompt.embeddings)
        embeddings, rows, others = tensors[:count], tensors[count], tensors[count + 1 :]
        named = dict(zip(self._prompt.embeddings, embeddings, strict=True))
        rest = dict(zip(self._prompt.others, others, strict=True))
        if self._columns is not None:
            rest["logits_to_keep"] = self._columns
        if self._table is not None:
            (ids,) = self._prompt.ids
            assert ids is not None
            handle = self._table.register_forward_hook(lambda *_: embeddings[0])
            try:
                return self._chosen(_logits(self._view(input_ids=ids[rows], **rest), len(rows)), rows.cpu())
            finally:
                handle.remove()
        positional = [named.pop("")] if "" in named else []
        logits = _logits(self._view(*positional, **named, **rest), len(rows))
        return self._chosen(logits, rows.cpu())

    def _chosen(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(N, K) of logits (N, L, V), (N, V)."""
        question = self.question
        if logits.ndim == 2:
            if question.explicit:
                raise ValueError(
                    f"the model returned {tuple(logits.shape)}, the same for all positions: leave positions out, and "
                    "name classes"
                )
            self._one_each = True
            logits = logits.unsqueeze(1)
            at = torch.zeros_like(question.at[rows])
        else:
            at = question.at[rows]
            if self._columns is not None and logits.size(1) == len(self._columns):
                at = torch.searchsorted(self._columns, at)
        every = torch.arange(len(rows), device="cpu").unsqueeze(1)
        every, at, valid = (t.to(logits.device) for t in (every, at, question.valid[rows]))
        if question.tokens is None:
            question.tokens = logits.detach()[every, at].argmax(-1).cpu()
        wanted = [question.tokens] + ([] if question.contrast is None else [question.contrast])
        if max(int(ids.max()) for ids in wanted) >= logits.size(-1):
            raise ValueError(f"targets and contrast must be below {logits.size(-1)}, the number of the model's outputs")
        chosen = [ids[rows].to(logits.device) for ids in wanted]
        if question.log_prob:
            logits = logits[every, at].log_softmax(-1)
            picked = [logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) for ids in chosen]
        else:
            picked = [logits[every, at, ids] for ids in chosen]
        result = picked[0] if len(picked) == 1 else picked[0] - picked[1]
        return result if bool(valid.all()) else result * valid.to(result.dtype)

    def target(self, row: int, k: int, words: Callable[[list[int]], list[str]]) -> LedgerTarget:
        """What one of the outputs is."""
        question = self.question
        assert question.tokens is not None
        token = int(question.tokens[row, k])
        contrast = None if question.contrast is None else int(question.contrast[row, k])
        position = None if self._one_each else self._prompt.offset + int(question.at[row, k])
        label = "" if self._one_each else words([token])[0]
        return LedgerTarget(row, position, token, contrast, question.log_prob, label)


def _logits(output: Any, n: int) -> Tensor:
    """The logits of what a model returned."""
    logits = output
    if not isinstance(output, Tensor):
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        logits = output[0] if logits is None and isinstance(output, tuple) and not hasattr(output, "keys") else logits
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model returned no logits, but {received(output)}")
    if logits.ndim not in (2, 3):
        raise TypeError(f"the model must return logits (N, L, V) or (N, C), but returned {tuple(logits.shape)}")
    return examples_first(logits, n)
