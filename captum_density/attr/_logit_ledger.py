"""LogitLedger: where all of a logit comes from, by layer, token and kind, in any language model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._linear.ledger import LedgerSums, TermTable
from captum_density._linear.sweep import IncompleteError, Sweep, sweep_each
from captum_density._linear.trace import enclosing_trace
from captum_density._model.errors import warn
from captum_density._model.modules import is_fully_sharded, unwrap
from captum_density._model.validation import check_model, examples_first, received
from captum_density.attr._ledger import Ledger, LedgerTarget, LedgerTerm
from captum_density.attr._repr import shown
from captum_density.rules import BalancedGradients

__all__ = ["LogitLedger"]

_LARGEST_GAP = 0.1  # what the engine explains by rounding in bfloat16
_NOTHING = 1e-3  # the share of input terms at padding that is no matter


class LogitLedger:
    r"""The ledger of a logit: every term of it, by layer, position and kind, in any language model.

    A model is a chain of operations y = op(u), each a linear map of its activations and what that leaves, y = A u + r.
    For embeddings x_p of the tokens, a logit is exactly

    .. math:: f(x) = \sum_p \langle g_p, x_p \rangle + \sum_{\text{operations}} \sum_p \langle g_{y_p}, r_p \rangle

    where the gradients g run back through the maps A. The first sum is the *input* column, what a logit owes to each
    token; the second is split by the layer of the operation, by the position p where its output sits, and into *bias*,
    constants that an operation adds, and *remainder*, what a nonlinear one leaves. Where direct logit attribution stops
    at what writes to the residual stream, this goes on, through attention and MLPs, to tokens and constants.

    The model is run once, and once backward for each token explained of a row; every term is summed up as soon as it is
    there, so that none is kept.

    Args:
        model: A Hugging Face model of any kind that takes `inputs_embeds`, decoder, encoder or both; or any module or
            function of embeddings (N, L, E) that returns logits (N, L, V), or (N, C). In eval mode.
        rules: What the maps are: None for the Jacobians, as in `FullGrad`; or as `BalancedGradients` takes them, which
            leaves less on biases and remainders.
        layers: The path of the list of layers, such as "model.layers", or several paths; left out, it is found.
        tokenizer: What names tokens in words, by `convert_ids_to_tokens`; left out, ids name them.

    Raises:
        TypeError: `model` is neither a module nor a function, or TorchScript.
        ValueError: `layers` names no list of modules.

    References:
        S. Srinivas and F. Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
        arXiv:1905.00780; N. Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021, on direct logit
        attribution.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        ... )
        >>> model = LlamaForCausalLM(config).eval()
        >>> ledger = LogitLedger(model, rules="libragrad").attribute(torch.tensor([[3, 14, 15, 9, 26]]))
        >>> ledger.table().shape  # explained tokens, layers, positions and none, kinds
        torch.Size([1, 4, 6, 3])
        >>> bool(ledger.gap() < 1e-5)
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        rules: str | Mapping[Any, Any] | None = None,
        layers: str | Sequence[str] | None = None,
        tokenizer: Any = None,
    ) -> None:
        check_model(model, "model")
        inner = model.model if isinstance(model, BalancedGradients) else model
        self._base = unwrap(inner)
        self.model, self.rules, self.tokenizer = model, rules, tokenizer
        self._view = model if rules is None else BalancedGradients(inner, rules)
        self._blocks = _blocks(self._base, [layers] if isinstance(layers, str) else layers)

    def __repr__(self) -> str:
        given = {} if self.rules is None else {"rules": self.rules}
        return shown(self, self.model, **given)

    def attribute(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        targets: str | int | slice | Sequence[Any] | Tensor = "next",
        positions: int | Sequence[Any] | Tensor | None = None,
        contrast: int | Sequence[Any] | Tensor | None = None,
        log_prob: bool = False,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Ledger:
        """The ledger of each explained token.

        ==================================  ==========================================================================
        targets                             explains
        ==================================  ==========================================================================
        ``"next"``                          the token, or class, of the largest logit
        ``42``                              this token, or class, in every row
        ``[42, 7]``, a tensor (N,)          one for each row
        a tensor (N, K)                     K for each row
        ``slice(12, None)``                 the tokens that stand there, each from the position before: a continuation
        ==================================  ==========================================================================

        Args:
            input_ids: (N, L) token ids, of which the model's own input embeddings are taken.
            inputs_embeds: (N, L, E) embeddings, in place of ids.
            targets: What is explained, see above: "next", an id, (N,) or (N, K) ids, or a slice.
            positions: Where logits are read, an integer, or K of them, or (N, K), from 0 to L - 1, padding counted, or
                from -L to -1. Left out, at the last token of each row that is no padding.
            contrast: The token whose logit is subtracted: an id, (N,) or (N, K).
            log_prob: Explain the log-probability (or its difference, with `contrast`) in place of the logit.
            attention_mask: (N, L), 0 at padding, left or right. With padding on the left `position_ids` follow it,
                where the model takes them.
            kwargs: What else the model takes; tensors of N rows are for each row. An encoder-decoder model takes
                `decoder_input_ids`, to which targets, positions and slices refer; left out, it is the start token.

        Returns:
            The ledger of T explained tokens, row by row; its `table()` is (T, K, Q, 3) over K layers and Q - 1
            positions, those of the encoder before those of the decoder.

        Raises:
            TypeError: Neither ids nor embeddings, or both; ids of a model without input embeddings; an output that
                holds no logits.
            ValueError: Targets or positions that do not fit, or stand at padding; as `FullGrad.attribute`.
            RuntimeError: A logit that its terms do not sum to; names the operation responsible.
            NotImplementedError: A model in `fully_shard`; checkpointing under rules; operations without a gradient.
        """
        if is_fully_sharded(self._base):
            raise NotImplementedError(
                "LogitLedger reads a layer's weights after it has run, when fully_shard has freed them; explain the "
                "model as it was before that, or in FullyShardedDataParallel or DistributedDataParallel"
            )
        prompt = _prompt(self._base, input_ids, inputs_embeds, attention_mask, kwargs)
        question = _question(prompt, targets, positions, contrast, log_prob)
        outputs = _Outputs(self._view, self._base, prompt, question)
        lengths = [x.size(1) for x in prompt.embeddings.values()]
        rows = torch.arange(prompt.n, device=prompt.device)
        with self._watched() as before:
            sweeps = sweep_each(
                outputs,
                tuple(prompt.embeddings.values()),
                (rows, *prompt.others.values()),
                partial(LedgerSums, lengths),
                [(1,)] * len(lengths),
            )
        return self._ledger(prompt, outputs, sweeps, before)

    # -- layers

    @contextmanager
    def _watched(self) -> Iterator[dict[str, set[str]]]:
        """Within, it is noted which operations ran before each list of layers."""
        before: dict[str, set[str]] = {path: set() for path in self._blocks}

        def note(path: str, module: nn.Module, args: Any) -> None:
            trace = enclosing_trace()
            if trace is not None and path not in entered.setdefault(trace, set()):
                entered[trace].add(path)
                before[path] |= {operation.name for operation in trace.operations}

        entered: dict[object, set[str]] = {}
        with ExitStack() as stack:
            for path, modules in self._blocks.items():
                for module in modules:
                    stack.callback(module.register_forward_pre_hook(partial(note, path)).remove)
            yield before

    def _layers(self) -> list[str]:
        """The layers in words."""
        if len(self._blocks) < 2:
            return ["embedding", *(str(i) for own in self._blocks.values() for i in range(len(own))), "final"]
        result = []
        for path, own in self._blocks.items():
            name = path.rpartition(".")[0] or path
            result += [f"{name} {layer}" for layer in ["embedding", *range(len(own)), "final"]]
        return result

    def _layer_of(self, name: str, before: dict[str, set[str]]) -> int:
        """The layer that an operation is of, by its module's path; outside all, by when it ran."""
        path, start = name.rpartition(":")[0], 0
        if not self._blocks:
            return 1
        paths = list(self._blocks)
        for own in paths:
            numbered = re.match(rf"{re.escape(own)}\.(\d+)(\.|$)", path)
            if numbered:
                return start + 1 + int(numbered[1])
            start += len(self._blocks[own]) + 2
        start = 0
        for i, own in enumerate(paths):
            if name in before[own]:  # the last layers ended before: what is of none of them is to come
                previous = paths[i - 1] if i else None
                parent = "" if previous is None else previous.rpartition(".")[0]
                is_end = previous is not None and (path == parent or path.startswith(f"{parent}."))
                return start - 1 if is_end else start
            start += len(self._blocks[own]) + 2
        return start - 1

    # -- what has come of it

    def _ledger(
        self, prompt: _Prompt, outputs: _Outputs, sweeps: Sequence[Sweep[TermTable]], before: dict[str, set[str]]
    ) -> Ledger:
        question = outputs.question
        names = list(dict.fromkeys(name for one in sweeps for name in one.result.names))
        order = [(row, k) for row in range(prompt.n) for k in range(len(sweeps)) if bool(question.valid[row, k])]
        by_output = [one.result.of_names(names) for one in sweeps]
        sums = torch.stack([by_output[k][:, row] for row, k in order])
        terms = [
            LedgerTerm(name, self._layer_of(name, before), "bias" if constant else "remainder")
            for name, constant in names
        ]
        if prompt.mask.size(1) == 1:  # nothing tells a single position from all positions, but it has them all
            first = len(self._layers()) - 2 - len(list(self._blocks.values())[-1]) if len(self._blocks) > 1 else 0
            own = [i for i, term in enumerate(terms) if term.layer >= first]
            sums[:, own, -2] += sums[:, own, -1]
            sums[:, own, -1] = 0
        ledger = Ledger(
            torch.stack([sweeps[k].output[row] for row, k in order]),
            [outputs.target(row, k, self._words) for row, k in order],
            self._layers(),
            prompt.words(self._words),
            torch.stack([sweeps[k].result.inputs[row] for row, k in order]),
            terms,
            sums,
        )
        _check(ledger, prompt)
        return ledger

    def _words(self, ids: list[int]) -> list[str]:
        return [str(i) for i in ids] if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens(ids)


def _check(ledger: Ledger, prompt: _Prompt) -> None:
    """Refuse a sum that is met among far larger numbers alone; say where padding counts.

    Raises:
        IncompleteError: The gap is more than what half precision explains.
    """
    gap = ledger.gap()
    if float(gap.max()) > _LARGEST_GAP:
        raise IncompleteError(
            f"the terms of {ledger.targets[int(gap.argmax())]} are a part of {float(gap.max()):.2g} of their size away "
            "from it: far larger numbers cancel inside the model; are there rows of padding alone, or infinite masks?"
        )
    rows = [target.row for target in ledger.targets]
    padding = ~prompt.mask[rows].to(ledger.inputs.device)
    share = (ledger.inputs[:, prompt.offset :].abs() * padding).sum(1) / ledger.inputs.abs().sum(1).clamp(min=1e-30)
    if float(share.max()) > _NOTHING:
        warn(
            f"the model reads its padding: of the input terms of {ledger.targets[int(share.argmax())]}, "
            f"{float(share.max()):.0%} sit there; pad on the other side, as an encoder that answers at [CLS] needs"
        )


def _blocks(model: Callable[..., Any], paths: Sequence[str] | None) -> dict[str, list[nn.Module]]:
    """The lists of layers by their paths: modules of one class, which have parts, in a list of their own.

    Raises:
        ValueError: A path that leads to no list.
    """
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if paths is not None:
        wrong = [path for path in paths if not isinstance(modules.get(path), nn.ModuleList | nn.Sequential)]
        if wrong:
            known = ", ".join(map(repr, _blocks(model, None))) or "none that is found"
            raise ValueError(f"layers must name lists of modules, but {wrong[0]!r} is none; this model has {known}")
        return {path: list(modules[path].children()) for path in paths}
    result: dict[str, list[nn.Module]] = {}
    for path, module in modules.items():
        children = list(module.children())
        within = any(path.startswith(f"{outer}.") for outer in result)
        alike = len({type(child) for child in children}) == 1 and any(True for _ in children[0].children())
        if isinstance(module, nn.ModuleList | nn.Sequential) and path and alike and not within:
            result[path] = children
    return result


# -- what the model is given


@dataclass(frozen=True)
class _Prompt:
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

    def words(self, name: Callable[[list[int]], list[str]]) -> list[list[str]]:
        """The tokens of each row."""
        parts = [
            [[str(p) for p in range(x.size(1))]] * self.n if ids is None else [name(row) for row in ids.tolist()]
            for x, ids in zip(self.embeddings.values(), self.ids, strict=True)
        ]
        return [[word for part in parts for word in part[row]] for row in range(self.n)]


def _prompt(
    model: Callable[..., Any],
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> _Prompt:
    takes = _arguments(model)
    others = {name: value for name, value in kwargs.items() if value is not None}
    embeddings, ids = _embeddings(model, "get_encoder", input_ids, inputs_embeds, "input_ids", "inputs_embeds")
    named = {"inputs_embeds" if "inputs_embeds" in takes else "": embeddings}
    of_inputs = [ids]
    mask = attention_mask
    if attention_mask is not None:
        others["attention_mask"] = attention_mask
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        start = others.pop("decoder_input_ids", None)
        given = others.pop("decoder_inputs_embeds", None)
        if start is None and given is None:
            begin = model.config.decoder_start_token_id  # type: ignore[attr-defined]
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
    if "position_ids" in takes and "position_ids" not in others and len(named) == 1 and not bool(mask[:, 0].all()):
        others["position_ids"] = _position_ids(model, mask)
    if "use_cache" in takes:
        others.setdefault("use_cache", False)
    return _Prompt(named, others, of_inputs, mask.cpu())


def _arguments(model: Callable[..., Any]) -> frozenset[str]:
    """The names of a model's arguments."""
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
        raise ValueError(f"{ids_name} must be a tensor (N, L) of token ids, but is {_shown_shape(ids)}")
    owner = model
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        owner = getattr(model, part)()
    find = getattr(owner, "get_input_embeddings", None)
    if find is None:
        raise TypeError(f"the model has no input embeddings (get_input_embeddings); pass {given_name} in place of ids")
    with torch.no_grad():
        return find()(ids), ids


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
class _Question:
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


def _question(prompt: _Prompt, targets: Any, positions: Any, contrast: Any, log_prob: bool) -> _Question:
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
        return _Question(at, ids.cpu()[:, columns], valid, _tokens(contrast, n, at.size(1)), log_prob, True)
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
    return _Question(at.expand(n, k), tokens, valid, against, log_prob, positions is not None)


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


class _Outputs:
    """The model as a function of its embeddings (N, L, E), whose outputs (N, K) are what is explained."""

    def __init__(self, view: Callable[..., Any], model: Callable[..., Any], prompt: _Prompt, question: _Question):
        self.question, self._view, self._prompt = question, view, prompt
        self._columns: Tensor | None = None
        self._named: list[Tensor] = list(prompt.embeddings.values())
        if "logits_to_keep" in _arguments(model) and "logits_to_keep" not in prompt.others:
            self._columns = torch.unique(question.at)
        self._one_each = False

    def __call__(self, *tensors: Any) -> Tensor:
        count = len(self._prompt.embeddings)
        embeddings, rows, others = tensors[:count], tensors[count], tensors[count + 1 :]
        named = dict(zip(self._prompt.embeddings, embeddings, strict=True))
        rest = dict(zip(self._prompt.others, others, strict=True))
        if self._columns is not None:
            rest["logits_to_keep"] = self._columns.to(rows.device)
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
