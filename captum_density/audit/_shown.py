"""The names that pictures show: of classes and features, of tokens, of what was predicted and what is true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_density._model.errors import describe
from captum_density.audit._maps import Maps, shown_rows
from captum_density.audit._sample import Sample
from captum_density.audit._setting import Setting
from captum_density.audit._subject import Subject

__all__ = ["Titles"]


@dataclass(frozen=True)
class Titles:
    """Names to show, checked before anything is measured.

    Args:
        classes: Of the outputs; None for their numbers.
        features: Of a table's columns, or of all values of several inputs; None for their numbers.
        tokens: Those of each example; empty where the inputs are none.
    """

    classes: Sequence[str] | None
    features: Sequence[str] | None
    tokens: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(
        cls,
        sample: Sample,
        subject: Subject,
        classes: Sequence[str] | None,
        feature_names: Sequence[Any] | None,
        tokens: Callable[[list[int]], Sequence[str]] | Sequence[Sequence[str]] | None,
    ) -> Titles:
        """Those that are given, as `audit`'s.

        Raises:
            TypeError: Tokens that are neither texts nor a function.
            ValueError: Names that do not fit the inputs.
        """
        return cls(classes, _features(feature_names, subject), _tokens(tokens, sample, subject))

    def maps(self, setting: Setting, values: Tensor, maps: Mapping[str, Tensor]) -> Maps:
        """What is drawn: some examples under their names, and what methods say of them.

        Args:
            setting: What was audited.
            values: The inputs in the data's own units.
            maps: Name of the method to what `drawn_maps` returned.
        """
        at = shown_rows(len(values))
        return Maps.of(
            values,
            setting.target,
            maps,
            kind=setting.kind,
            labels=tuple(self._label(setting, i) for i in at),
            names=tuple(self.features or ()),
            tokens=tuple(self.tokens[i] for i in at) if self.tokens else (),
        )

    def _label(self, setting: Setting, i: int) -> str:
        """What is predicted of an example, and its label; what is explained, where that is another class."""
        logits, target = setting.logits[i], int(setting.target[i])
        label = None if setting.labels is None else setting.labels[i]
        if setting.task == "regression":
            of = (
                f"{self.classes[target]} "
                if self.classes is not None
                else f"output {target} "
                if len(logits) > 1
                else ""
            )
            lines = [f"{of}predicted {float(logits[target]):.3g}"]
            return "\n".join(lines + ([] if label is None else [f"label {float(label[target]):.3g}"]))
        one = len(logits) == 1
        predicted = int(setting.predicted[i])
        lines = [f"predicted {self._class(predicted)}"]
        if label is not None and int(label) >= 0:
            lines.append(f"label {self._class(int(label))}")
        if not one and target != predicted:
            lines.append(f"explained {self._class(target)}")
        return "\n".join(lines)

    def _class(self, number: int) -> str:
        return str(number) if self.classes is None else self.classes[number]


def _features(given: Sequence[Any] | None, subject: Subject) -> list[str] | None:
    if subject.kind not in ("table", "inputs"):
        if given is not None:
            raise ValueError("feature_names are for the columns of tables, or several inputs; leave them out")
        return None
    n = subject.inputs.shape[1]
    if given is None:
        if subject.kind == "table":
            return None
        given = [None] * len(subject.sizes)
    if subject.kind == "inputs" and not isinstance(given, str) and len(given) == len(subject.sizes):
        given = [
            [f"input {i} [{k}]" for k in range(size)] if each is None else each
            for i, (each, size) in enumerate(zip(given, subject.sizes, strict=True))
        ]
    names = [str(name) for each in given for name in ([each] if isinstance(each, str) else _listed(each))]
    if isinstance(given, str) or len(names) != n:
        of = (
            f", those of each of {len(subject.sizes)} inputs in a list of its own or None,"
            if subject.kind == "inputs"
            else ""
        )
        raise ValueError(f"feature_names must hold a name for each of {n} features{of} but holds {len(names)}")
    return names


def _listed(names: Any) -> list[Any]:
    return list(names) if isinstance(names, Sequence) else [names]


def _tokens(given: Any, sample: Sample, subject: Subject) -> tuple[tuple[str, ...], ...]:
    if subject.ids is None:
        if given is not None:
            raise ValueError("tokens are for token ids, which take layer=model.embeddings; leave them out")
        return ()
    rows: list[list[int]] = subject.ids.tolist()
    if given is None:
        texts: list[Any] = [list(map(str, row)) for row in rows]
    elif callable(given):
        texts = [given(row) for row in rows]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        places = range(len(rows)) if sample.places is None else sample.places.tolist()
        if len(given) != (sample.total or len(rows)):
            raise ValueError(
                f"tokens must be of each of {sample.total or len(rows)} examples, but are of {len(given)}; give a "
                "function of an example's ids, such as tokenizer.convert_ids_to_tokens"
            )
        texts = [given[i] for i in places]
    else:
        raise TypeError(
            f"tokens must be the texts of each example, or a function of its ids such as "
            f"tokenizer.convert_ids_to_tokens, but is {describe(given)}"
        )
    for text, row in zip(texts, rows, strict=True):
        if isinstance(text, str) or len(text) != len(row):
            raise ValueError(f"tokens must be one text for each of {len(row)} ids of an example, but are {text!r}")
    return tuple(tuple(map(str, text)) for text in texts)
