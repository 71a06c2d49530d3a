"""Subject-verb agreement: which noun gives the verb its number?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from captum_density._model.arrays import takes_arrays
from captum_density.ground_truth._networks import Reader, one_hot
from captum_density.ground_truth._task import Latents, Part, Task, TaskExamples
from captum_density.retraining import FitConfig

__all__ = ["SubjectVerbAgreement"]

_WORDS = {
    "article": "the that".split(),
    "adjective": "old red small quiet".split(),
    "preposition": "near behind above with".split(),
    "adverb": "often never soon".split(),
    ",": [","],
    "?": ["?"],
    "noun": "key cabinet author senator path lake keys cabinets authors senators paths lakes".split(),
}
_WORDS["subject"] = _WORDS["noun"]
_VOCABULARY = [*dict.fromkeys(word for words in _WORDS.values() for word in words), "_"]
_BLANK = len(_VOCABULARY) - 1
_NOUNS = len(_WORDS["noun"]) // 2  # of each number
# In the first the subject is the first noun; in others a noun precedes it, or several follow.
_FRAMES = [
    "article adjective subject preposition article noun preposition article noun ?",
    "preposition article noun , article subject preposition article noun ?",
    "preposition article adjective noun , article adjective subject adverb ?",
    "article subject preposition article adjective noun preposition article noun ?",
    "preposition article noun , article subject adverb adverb adverb ?",
]
_KINDS = np.array([frame.split() for frame in _FRAMES])
_LENGTH = _KINDS.shape[1]
_AWAY = 0.05  # of the tokens in training, so that the network knows what stands for a token that is away


@dataclass(frozen=True)
class SubjectVerbAgreement(Task):
    """Sentences up to their verb, which is singular (0) or plural (1), as the subject is.

    "The key to the cabinets": other nouns, of any number, stand before and after the subject. What decides is the
    subject alone, for the frame of the sentence (where its prepositions are) stays. Inputs are one-hot, so that a word
    is changed by changing the input, whatever the network.

    References:
        T. Linzen, E. Dupoux and Y. Goldberg, "Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies",
        TACL 2016, arXiv:1611.01368.

    Example:
        >>> import torch
        >>> task = SubjectVerbAgreement()
        >>> examples = task.examples(2, seed=3)
        >>> [task.words(x) for x in examples.inputs]
        ['the quiet senators behind the path with the cabinet ?', 'behind that path , that senators soon soon often ?']
        >>> examples.targets.tolist()
        [1, 1]
    """

    name: ClassVar[str] = "subject-verb agreement"
    fit: ClassVar[FitConfig] = FitConfig(epochs=5, batch_size=128, lr=4e-3)
    training_examples: ClassVar[int] = 6000

    @staticmethod
    @takes_arrays
    def words(sentence: Tensor) -> str:
        """Read a sentence.

        Args:
            sentence: (L, V) one-hot.

        Returns:
            Its words.

        Raises:
            ValueError: It is no sentence of this task.
        """
        if sentence.shape != (_LENGTH, len(_VOCABULARY)):
            raise ValueError(f"a sentence is ({_LENGTH}, {len(_VOCABULARY)}), but has shape {tuple(sentence.shape)}")
        return " ".join(_VOCABULARY[i] for i in sentence.argmax(1).tolist())

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Frames, their words, and which words are blank."""
        frames = random.randint(len(_FRAMES), size=n)
        away = random.random_sample((n, _LENGTH)) < (_AWAY if training else 0)
        return {"frame": frames, "ids": self._words(frames, random), "away": away}

    @staticmethod
    def _words(frames: npt.NDArray[Any], random: np.random.RandomState) -> npt.NDArray[Any]:
        kinds, ids = _KINDS[frames], np.zeros((len(frames), _LENGTH), dtype=int)
        for kind, words in _WORDS.items():
            drawn = random.randint(len(words), size=ids.shape)
            ids = np.where(kinds == kind, np.array([_VOCABULARY.index(word) for word in words])[drawn], ids)
        return ids

    def render(self, latents: Latents) -> TaskExamples:
        """One-hot words (N, 10, V)."""
        masks = _KINDS[latents["frame"]] == "subject"
        first = _VOCABULARY.index(_WORDS["noun"][0])
        plural = (latents["ids"][masks] - first) // _NOUNS
        inputs = one_hot(np.where(latents["away"], _BLANK, latents["ids"]), len(_VOCABULARY))
        return TaskExamples(inputs, torch.from_numpy(plural).long(), torch.from_numpy(masks)[:, :, None], latents)

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """Another subject, of the other number; or other words beside."""
        ids, subject = latents["ids"], _KINDS[latents["frame"]] == "subject"
        if part == "rest":
            return {**latents, "ids": np.where(subject, ids, self._words(latents["frame"], random))}
        first = _VOCABULARY.index(_WORDS["noun"][0])
        plural = (ids - first) // _NOUNS
        other = first + _NOUNS * (1 - plural) + random.randint(_NOUNS, size=ids.shape)
        return {**latents, "ids": np.where(subject, other, ids)}

    def network(self) -> nn.Module:
        """A transformer of two layers."""
        return Reader(len(_VOCABULARY), _LENGTH, 2)

    @property
    def groups(self) -> Tensor:
        """Words: a tensor that broadcasts to an input."""
        return torch.arange(_LENGTH, device="cpu")[:, None]

    @property
    def baseline(self) -> Tensor:
        """A blank word: a tensor that broadcasts to an input."""
        return one_hot(np.array([[_BLANK]]), len(_VOCABULARY))[0]
