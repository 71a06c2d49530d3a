"""ROAR, KAR and DiffROAR: which pixels matter, asked of models retrained without the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

from torch import nn

from captum_density.metrics._attributors import Attributor
from captum_density.metrics._retrain import CONTROLS, Control, Data, Settings, retrain
from captum_density.metrics._retraining_result import RetrainingResult
from captum_density.retraining import FitConfig

__all__ = ["diff_roar", "kar", "roar"]


def diff_roar(
    make_model: Callable[[], nn.Module],
    train: Data,
    test: Data,
    attributions: Mapping[str, Attributor],
    *,
    fractions: Sequence[float] = (0.05, 0.1, 0.25, 0.5),
    runs: int = 5,
    fit: FitConfig | Callable[..., object] | None = None,
    baselines: Any = 0.0,
    target: Literal["predicted", "true"] = "predicted",
    groups: Any = None,
    controls: Sequence[Control] = CONTROLS,
    seed: int = 0,
    strategy: Literal["auto", "loop", "channels_last", "vmap"] = "auto",
    executor: Executor | None = None,
    store: str | Path | None = None,
    show_progress: bool = False,
    max_examples_per_batch: int = 256,
) -> RetrainingResult:
    """Whether what an attribution ranks high predicts better, to a model retrained on it, than what it ranks low.

    DiffROAR(A, k) = PredPower(A_top, k) - PredPower(A_bottom, k): the accuracy of models trained and tested on examples
    of which only the top k elements by |attribution| are kept, minus the same of the bottom k.

    What goes wrong easily, and is taken care of here:

    - *Labels leak through attributions.* Attributions of the true class on test examples tell the class: with labels
      shuffled at random, the top 10% then "predict" them. By default the predicted class is attributed, on training
      and test examples alike, and labels are not given to the attributor.
    - *Masks leak.* Where the mask of the removed elements tells the class by its shape, their values are not needed:
      see the control "mask_only", and `captum_density.retraining.noisy_linear_imputation` in place of a constant
      baseline.
    - *The best epoch is no epoch.* The model after the last one is tested; to choose by test accuracy is optimistic.
    - *Fractions are counts.* Each fraction becomes a number of elements, at least 1, exactly kept whatever the ties,
      which positions break, alike on every machine. Keeping everything is one model for both sides: DiffROAR(1) is 0.
    - *Runs are not all that varies.* Intervals come from a bootstrap over runs and test examples.

    Args:
        make_model: Returns a new, untrained classifier, (N, C) logits. It need not be the model that is explained.
        train: Inputs (N, ...), floating-point, and labels (N,), integers from 0: tensors or arrays, or a data set or
            DataLoader of such pairs, which is read once (ready attributions have to be in its order).
        test: Inputs (M, ...) and labels (M,), likewise.
        attributions: Name to what ranks: a Captum attribution, ``Saliency(model)``; its method with options,
            ``functools.partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=10)``; any function of the inputs
            that returns attributions of the inputs' shape; or these themselves, a pair of arrays for train and test.
        fractions: Of elements (or groups) kept, in (0, 1].
        runs: How many models are trained for each masked data set, which differ in initial weights and order.
        fit: How: a `captum_density.retraining.FitConfig` or a function ``fit(model, inputs, labels, seed)``.
        baselines: What a removed element becomes: a number; "mean", the training mean of each channel of images, and of
            each element of inputs (N, D) or (N, L, E); a tensor that broadcasts to an input; or a function
            ``impute(inputs, kept, generator=generator)``.
        target: Which class is attributed, "predicted" or "true"; with "true", a function is given ``target=labels``.
        groups: What is kept or removed as one: None for every element singly, as in the paper; "channels" for pixels in
            all channels; a patch's side or (height, width), in pixels, all channels together; or a tensor of group
            numbers that broadcasts to an input. A group is as important as its elements' mean |attribution|.
        controls: Which of the following to train as well.
            "random": a random ranking for each example and run. "input_agnostic": one ranking for all examples, by the
            mean |attribution| of the training set. "mask_only": the mask itself, 1 where an element is kept, in place
            of the masked example; as the masks of both sides may tell the class, each one's accuracy counts, and not
            their difference. "blurred": |attribution| after a Gaussian blur, of a standard deviation of one 28th of the
            image and at least a pixel: it knows nothing more of the model, so that a higher score rewards smoothness;
            left out, with a note, for inputs that are no images (N, C, H, W).
        seed: Of everything that is drawn.
        strategy: As `captum_density.retraining.fit_many`'s.
        executor: As `captum_density.retraining.fit_many`'s: where to train.
        store: As `captum_density.retraining.fit_many`'s: a folder in which finished models are remembered.
        show_progress: Whether to show progress bars.
        max_examples_per_batch: How many examples are attributed at once.

    Returns:
        A `RetrainingResult`, with `table()`, `plot()`, and `conclusions` in words.

    Raises:
        ValueError: Fractions outside (0, 1], test classes that training lacks, attributions whose shape does not fit
            or which are not finite, empty data, a factory that returns the same object twice.
        TypeError: Attributions of no known kind; inputs or labels of the wrong type; what cannot be sent to a worker.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, section 3; S. Hooker, D. Erhan, P.-J. Kindermans and B. Kim, "A Benchmark for Interpretability
        Methods in Deep Neural Networks", NeurIPS 2019, arXiv:1806.10758; Y. Rong et al., "A Consistent and Efficient
        Evaluation Strategy for Attribution Methods", ICML 2022, arXiv:2202.00449 (masks that leak); "blurred" after
        Song et al., arXiv:2304.13836.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_density.retraining import FitConfig
        >>> x = torch.randn(300, 4)
        >>> train, test = (x[:200], (x[:200, 0] > 0).long()), (x[200:], (x[200:, 0] > 0).long())
        >>> model = torch.nn.Linear(4, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[-2.0, 0.1, 0.2, 0.3], [2.0, 0.3, 0.2, 0.1]]))  # looks at x[0]
        >>> result = diff_roar(
        ...     lambda: torch.nn.Linear(4, 2), train, test, {"Saliency": Saliency(model)}, fractions=[0.25], runs=2,
        ...     fit=FitConfig(lr=0.1),
        ... )
        >>> result.score.item() > 0.2
        True
    """
    settings = Settings(
        fractions=fractions,
        runs=runs,
        fit=fit,
        baselines=baselines,
        target=target,
        groups=groups,
        controls=tuple(controls),
        seed=seed,
        strategy=strategy,
        executor=executor,
        store=store,
        show_progress=show_progress,
        max_examples_per_batch=max_examples_per_batch,
    )
    return retrain("diff_roar", make_model, train, test, attributions, settings)


def roar(
    make_model: Callable[[], nn.Module],
    train: Data,
    test: Data,
    attributions: Mapping[str, Attributor],
    *,
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 0.75),
    runs: int = 5,
    fit: FitConfig | Callable[..., object] | None = None,
    baselines: Any = "mean",
    target: Literal["predicted", "true"] = "predicted",
    groups: Any = None,
    controls: Sequence[Control] = CONTROLS,
    seed: int = 0,
    strategy: Literal["auto", "loop", "channels_last", "vmap"] = "auto",
    executor: Executor | None = None,
    store: str | Path | None = None,
    show_progress: bool = False,
    max_examples_per_batch: int = 256,
) -> RetrainingResult:
    """Remove and retrain: what accuracy is left when the elements that rank highest are removed and models retrained.

    A random ranking is what to compare with: models learn from what is redundant. `diff_roar` says what goes wrong
    easily.

    Args:
        fractions: Of elements (or groups) removed, in (0, 1].
        baselines: As `diff_roar`; the default, "mean", of each channel, is the paper's.
        Other arguments: As `diff_roar`.

    Returns:
        A `RetrainingResult` whose score is the accuracy left, in [0, 1]; lower is better.

    Raises:
        ValueError: As `diff_roar`.
        TypeError: As `diff_roar`.

    References:
        S. Hooker, D. Erhan, P.-J. Kindermans and B. Kim, "A Benchmark for Interpretability Methods in Deep Neural
        Networks", NeurIPS 2019, arXiv:1806.10758.

    Example:
        >>> import torch
        >>> from captum_density.retraining import FitConfig
        >>> x = torch.randn(300, 4)
        >>> train, test = (x[:200], (x[:200, 0] > 0).long()), (x[200:], (x[200:, 0] > 0).long())
        >>> importance = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> result = roar(
        ...     lambda: torch.nn.Linear(4, 2), train, test, {"true": lambda x: importance.expand_as(x)},
        ...     fractions=[0.25], runs=2, controls=["random"], fit=FitConfig(lr=0.1),
        ... )
        >>> (result.score < result.control_score("random")).item()  # without the first element, nothing predicts
        True
    """
    settings = Settings(
        fractions=fractions,
        runs=runs,
        fit=fit,
        baselines=baselines,
        target=target,
        groups=groups,
        controls=tuple(controls),
        seed=seed,
        strategy=strategy,
        executor=executor,
        store=store,
        show_progress=show_progress,
        max_examples_per_batch=max_examples_per_batch,
    )
    return retrain("roar", make_model, train, test, attributions, settings)


def kar(
    make_model: Callable[[], nn.Module],
    train: Data,
    test: Data,
    attributions: Mapping[str, Attributor],
    *,
    fractions: Sequence[float] = (0.05, 0.1, 0.25, 0.5),
    runs: int = 5,
    fit: FitConfig | Callable[..., object] | None = None,
    baselines: Any = "mean",
    target: Literal["predicted", "true"] = "predicted",
    groups: Any = None,
    controls: Sequence[Control] = CONTROLS,
    seed: int = 0,
    strategy: Literal["auto", "loop", "channels_last", "vmap"] = "auto",
    executor: Executor | None = None,
    store: str | Path | None = None,
    show_progress: bool = False,
    max_examples_per_batch: int = 256,
) -> RetrainingResult:
    """Keep and retrain: what accuracy models reach that see the elements that rank highest, and nothing else.

    It is the top side of `diff_roar`, which says what goes wrong easily; here, the mask leaks most.

    Args:
        fractions: Of elements (or groups) kept, in (0, 1].
        baselines: As `diff_roar`; the default, "mean", of each channel, is the paper's.
        Other arguments: As `diff_roar`.

    Returns:
        A `RetrainingResult` whose score is the accuracy reached, in [0, 1]; higher is better.

    Raises:
        ValueError: As `diff_roar`.
        TypeError: As `diff_roar`.

    References:
        S. Hooker, D. Erhan, P.-J. Kindermans and B. Kim, "A Benchmark for Interpretability Methods in Deep Neural
        Networks", NeurIPS 2019, arXiv:1806.10758.

    Example:
        >>> import torch
        >>> from captum_density.retraining import FitConfig
        >>> x = torch.randn(300, 4)
        >>> train, test = (x[:200], (x[:200, 0] > 0).long()), (x[200:], (x[200:, 0] > 0).long())
        >>> importance = torch.tensor([4.0, 3.0, 2.0, 1.0])
        >>> result = kar(
        ...     lambda: torch.nn.Linear(4, 2), train, test, {"true": lambda x: importance.expand_as(x)},
        ...     fractions=[0.25], runs=2, controls=["random"], fit=FitConfig(lr=0.1),
        ... )
        >>> (result.score > result.control_score("random")).item()  # the first element is all it takes
        True
    """
    settings = Settings(
        fractions=fractions,
        runs=runs,
        fit=fit,
        baselines=baselines,
        target=target,
        groups=groups,
        controls=tuple(controls),
        seed=seed,
        strategy=strategy,
        executor=executor,
        store=store,
        show_progress=show_progress,
        max_examples_per_batch=max_examples_per_batch,
    )
    return retrain("kar", make_model, train, test, attributions, settings)
