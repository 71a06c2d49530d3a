"""LogitLedger: where all of a logit comes from, by layer, token and kind, in any language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_density._linear.ledger import LedgerSums, TermTable
from captum_density._linear.sweep import IncompleteError, Sweep, sweep_each
from captum_density._model.arrays import takes_arrays
from captum_density._model.calls import map_tensors
from captum_density._model.errors import warn
from captum_density._model.modules import is_fully_sharded, unwrap
from captum_density._model.validation import check_model
from captum_density.attr._layer_rows import LayerRows
from captum_density.attr._ledger import Ledger, LedgerTerm
from captum_density.attr._ledger_differences import BASELINE, check_halves, differences, embedded_baselines
from captum_density.attr._prompts import PARTS, Outputs, Prompt, look_up, prompt_of, question_of
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
        self._layers = LayerRows(self._base, [layers] if isinstance(layers, str) else layers)

    def __repr__(self) -> str:
        given = {} if self.rules is None else {"rules": self.rules}
        return shown(self, self.model, **given)

    @takes_arrays
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
        baselines: Any = None,
        halves: int = 0,
        generator: torch.Generator | None = None,
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
            baselines: x', against which the logit is explained: what stands for a token that says nothing. Ids, one,
                (L,) or (N, L), such as that of [MASK], or floating-point embeddings that broadcast to (N, L, E); a
                tuple of two for an encoder-decoder model, of which None is left as it is. The input column is then what
                each token adds to f(x'), by the discrete gradients of `CompleteDeepLift`, and the only other term,
                "bias" of no position, is f(x').
            halves: With baselines, how many random halves of the tokens are put in first and the others then, and the
                other way round. The mean of these ways, and of the one on which all tokens are put in at once, which
                has half of the weight, is nearer to Shapley values. Each half costs four times what the one way does.
            generator: What halves are drawn from; None for the global generator.
            kwargs: What else the model takes; tensors of N rows are for each row. An encoder-decoder model takes
                `decoder_input_ids`, to which targets, positions and slices refer; left out, it is the start token.

        Returns:
            The ledger of T explained tokens, row by row; its `table()` is (T, K, Q, 3) over K layers and Q - 1
            positions, those of the encoder before those of the decoder.

        Raises:
            TypeError: Neither ids nor embeddings, or both; ids of a model without input embeddings; an output that
                holds no logits.
            ValueError: Targets or positions that do not fit, or stand at padding; baselines beside rules; as
                `FullGrad.attribute`, and with baselines as `CompleteDeepLift.attribute`.
            RuntimeError: A logit that its terms do not sum to; names the operation responsible.
            NotImplementedError: A model in `fully_shard`; checkpointing under rules; operations without a gradient.
        """
        if is_fully_sharded(self._base):
            raise NotImplementedError(
                "LogitLedger reads a layer's weights after it has run, when fully_shard has freed them; explain the "
                "model as it was before that, or in FullyShardedDataParallel or DistributedDataParallel"
            )
        check_halves(halves, baselines, self.rules)
        with torch.inference_mode(False):  # what is made in inference mode autograd does not keep
            given = (input_ids, inputs_embeds, attention_mask, kwargs)
            prompt = prompt_of(self._base, *map_tensors(lambda t: t.clone() if t.is_inference() else t, given))
            question = question_of(prompt, targets, positions, contrast, log_prob)
            outputs = Outputs(self._view, self._base, prompt, question)
            lengths = [x.size(1) for x in prompt.embeddings.values()]
            rows = torch.arange(prompt.n, device=prompt.device)
            if baselines is not None:
                look = partial(self._look_up, "baselines that are embeddings")
                starts = embedded_baselines(prompt, baselines, look)
                others = (rows, *prompt.others.values())
                sweeps = differences(outputs, prompt, others, starts, halves, generator)
                return self._ledger(prompt, outputs, sweeps, lambda name: 0)
        with self._layers.watched() as layer_of:
            sweeps = sweep_each(
                outputs,
                tuple(prompt.embeddings.values()),
                (rows, *prompt.others.values()),
                partial(LedgerSums, lengths),
                [(1,)] * len(lengths),
            )
        return self._ledger(prompt, outputs, sweeps, layer_of)

    # -- what has come of it

    def _ledger(
        self,
        prompt: Prompt,
        outputs: Outputs,
        sweeps: Sequence[Sweep[TermTable]],
        layer_of: Callable[[str], int],
    ) -> Ledger:
        question = outputs.question
        names = list(dict.fromkeys(name for one in sweeps for name in one.result.names))
        order = [(row, k) for row in range(prompt.n) for k in range(len(sweeps)) if bool(question.valid[row, k])]
        by_output = [one.result.of_names(names) for one in sweeps]
        sums = torch.stack([by_output[k][:, row] for row, k in order])
        terms = [LedgerTerm(name, layer_of(name), "bias" if constant else "remainder") for name, constant in names]
        if prompt.mask.size(1) == 1 and names != [
            (BASELINE, True)
        ]:  # nothing tells a single position from all positions, but it has them all
            own = [i for i, term in enumerate(terms) if term.layer >= self._layers.first_of_last]
            sums[:, own, -2] += sums[:, own, -1]
            sums[:, own, -1] = 0
        ledger = Ledger(
            torch.stack([sweeps[k].output[row] for row, k in order]),
            [outputs.target(row, k, self._words) for row, k in order],
            self._layers.names,
            prompt.words(self._words),
            torch.stack([sweeps[k].result.inputs[row] for row, k in order]),
            terms,
            sums,
        )
        _check(ledger, prompt)
        return ledger

    def _look_up(self, instead: str, part: int, ids: Tensor) -> Tensor:
        return look_up(self._base, PARTS[part], ids, instead)

    def _words(self, ids: list[int]) -> list[str]:
        return [str(i) for i in ids] if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens(ids)


def _check(ledger: Ledger, prompt: Prompt) -> None:
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
