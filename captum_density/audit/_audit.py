"""`audit`: a model and its attribution methods measured on the same examples, each measurement from the same seed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from captum.attr import Attribution
from torch import Tensor, nn
from tqdm import tqdm

from captum_density._cache.store import Store
from captum_density._model.arrays import takes_arrays
from captum_density._model.attribution import attribution_maker
from captum_density._model.evaluation import differentiable
from captum_density._model.fixed_modules import evaluation_mode
from captum_density._model.generators import replayable
from captum_density._model.validation import check_limit, check_model
from captum_density.audit._budget import THOROUGH, budget_for, check_effort
from captum_density.audit._catalogue import methods_of
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures import FIGURES, METHOD_FIGURES, MODEL_FIGURES, selected
from captum_density.audit._figures.off_manifold_gradient import OFF_MANIFOLD_GRADIENT
from captum_density.audit._measurements import Measurements
from captum_density.audit._methods import CENTERED, Method
from captum_density.audit._outputs import class_titles, fitting_labels, targets_of, task_of
from captum_density.audit._report import AuditReport
from captum_density.audit._results import Measured
from captum_density.audit._retraining import Retraining
from captum_density.audit._runs import counted_runs
from captum_density.audit._sample import draw_sample
from captum_density.audit._setting import Setting, Task
from captum_density.audit._shown import Titles
from captum_density.audit._subject import deviation, of_unlike_scales, subject_of

__all__ = ["audit", "check_names"]

# Of the inputs' standard deviation, so that both are small in any unit: 0.11 and 0.02 for digits in [0, 1].
_NOISE, _RADIUS = 0.3, 0.05


@takes_arrays
def audit(
    model: Callable[..., Tensor],
    data: Any,
    attributions: Mapping[str, Callable[..., Any] | Attribution | Method | str] | Iterable[str] | None = None,
    *,
    metrics: Iterable[str] | None = None,
    target: Tensor | int | Literal["predicted", "label"] = "predicted",
    limit: int | None = 64,
    seed: int = 0,
    noise_std: float | None = None,
    perturb_radius: float | None = None,
    infidelity_samples: int = 100,
    sensitivity_samples: int = 5,
    effort: Literal["default", "thorough"] = "default",
    max_examples_per_batch: int = 32,
    proxy: Callable[..., Tensor] | None = None,
    retraining: Retraining | None = None,
    store: str | Path | None = None,
    show_progress: bool = False,
    name: str | None = None,
    layer: nn.Module | None = None,
    additional_forward_args: Any = None,
    task: Task | None = None,
    channel_dim: int = 1,
    standardize: bool | None = None,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[Any] | None = None,
    tokens: Callable[[list[int]], Sequence[str]] | Sequence[Sequence[str]] | None = None,
) -> AuditReport:
    """Ask of a model whether its gradients, and what is made of them, can be trusted as explanations.

    Every figure is of the same examples and outputs, and every method is given the same perturbations. A method that
    fails is reported in its row, and the others go on. `AuditReport` says in words what follows from the figures.

    The methods' figures are Captum's `infidelity` (Yeh et al., equation 1; values set to 0 with probability 0.2,
    ``normalize=True``, so that scale and sign of a map do not count) and `sensitivity_max`, and
    `captum_density.metrics`' `shift_sensitivity`, `pixel_perturbation` and `diff_roar`, infidelity and pixel
    perturbation beside controls, maps that know nothing of the model's reasons, see `Measured`; and rank
    correlations (Spearman) of each map with the same method's map when weights of the model are drawn anew
    ("randomisation", Adebayo et al.) and with that of the second class ("class_likeness"). The model's are
    `density_ratio`, the squared norm of `captum_density.density.class_score`, `hessian_trace` and `gan_test`.

    Args:
        model: Maps (N, ...) to (N, classes), logits; to numbers (N,) or (N, outputs); or to (N, classes, H, W) of
            segmentation, of which logits are averaged over the pixels where the explained class is predicted: the
            target of Captum's tutorial on segmentation, over its size. A module is put into evaluation mode for the
            time of the call.
        data: Inputs (N, ...), floating-point, or a tuple of such, as the model takes them; a pair (inputs, labels); a
            data set of such items; or a `DataLoader`. Labels are classes (N,), of segmentation (N, H, W), or numbers.
            Examples of a data set that raise when they are read are skipped and named in the report.
        attributions: Name to a function that makes the attribution for a model, which a Captum class is
            (``{"IG": IntegratedGradients}``), to an attribution of this model (``Saliency(model)``), or to a `Method`
            where options are needed; or names that the report knows (``["Saliency", "FullGrad, centered"]``); None for
            ten of them, of one output and of numbers the nine that are not centered.
        metrics: Names of the figures; "default" for all but "diff_roar" and "gan_test", "all" for all.
        target: Which output to explain: that of the predicted class (of segmentation the one of the most pixels), of
            the label, that of a number, or those in a tensor (N,), one for each audited example.
        limit: At most so many examples, drawn at random where there are more, of a loader the first; None for all.
        seed: Of all perturbations and of methods that draw noise, from PyTorch, NumPy or Python; the global random
            states are left as they were.
        noise_std: Standard deviation of the noise in the density's figures, in the inputs' unit; None for 0.3 of the
            inputs' standard deviation.
        perturb_radius: The largest change of an input value in sensitivity_max; None for 0.05 of it.
        infidelity_samples: Perturbations per example of infidelity, at most.
        sensitivity_samples: Perturbations per example of sensitivity_max, at most.
        effort: "thorough" measures everything of every method. "default" does so of models that take at most 2e8
            operations for an example. Of larger ones it leaves out what tells least for its price, and says so in each
            place: of the ten methods those that average over a path or noise; of methods of several runs for an example
            the figures for which they would have to run again; controls that cannot change the answer; and samples
            where few are enough.
        max_examples_per_batch: Most examples, copies included, that run at once, where a method lets itself be told.
        proxy: Another classifier of the same classes, for "gan_test".
        retraining: What "diff_roar" retrains, and on what.
        store: A folder in which every finished figure is remembered: an audit that was stopped goes on where it was,
            and gives the report that it would have given.
        show_progress: Whether to show a progress bar.
        name: Of the model in the report; None for its class.
        layer: A module of the model whose output is explained in place of its inputs, as ``model.embeddings`` of a
            model of token ids (N, L), whose tokens are then ranked.
        additional_forward_args: As Captum's: what the model takes beside its inputs, such as attention masks. Tensors
            of as many rows as the data, which are tensors then, hold one for each example.
        task: Whether outputs are logits of classes or numbers; None to go by outputs and labels: numbers are (N,)
            without labels, and what has floating-point labels.
        channel_dim: Which dimension of the inputs holds channels, which are ranked together: -1 of what recurrent
            networks and transformers take, (N, length, channels).
        standardize: Whether features, of a table or several inputs, or channels of signals are counted in their own
            deviations, from their means; baselines of zeros are then means. None to do so where one of them varies by
            less than a tenth of the deviation of all values.
        class_names: Names of the outputs, for pictures.
        feature_names: Names of a table's columns; of several inputs those of each in a list, or None.
        tokens: Texts of each example's tokens, or a function of its ids, such as
            ``tokenizer.convert_ids_to_tokens``.

    Returns:
        An `AuditReport`.

    Raises:
        TypeError: Data, inputs or labels of the wrong kind; a model that is none or returns no tensor; a method that
            is neither an attribution nor a function of the model.
        ValueError: No examples, NaN or infinite ones, a model that fails on them or returns no (N, classes), a target
            that does not fit, no methods, a method made for another model, unknown names, or a figure asked for
            without what it needs.
        OSError: The store cannot be written to.

    References:
        C.-K. Yeh, C.-Y. Hsieh, A. S. Suggala, D. I. Inouye and P. Ravikumar, "On the (In)fidelity and Sensitivity of
        Explanations", NeurIPS 2019, arXiv 1901.09392; J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt and B.
        Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv 1810.03292; S. Srinivas and F. Fleuret, ICLR 2021,
        arXiv 2006.09128; H. Shah, P. Jain and P. Netrapalli, NeurIPS 2021, arXiv 2102.12781.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient, IntegratedGradients
        >>> model, x = torch.nn.Linear(3, 2), torch.rand(8, 3)
        >>> report = audit(model, (x, torch.zeros(8).long()), {"IG": IntegratedGradients, "grad": InputXGradient})
        >>> list(report.methods)
        ['IG', 'grad']
        >>> report.methods["IG"]["completeness_gap"].value < 1e-3, report.methods["grad"]["completeness_gap"].text()
        (True, '-')
        >>> infidelity = report.methods["IG"]["infidelity"]
        >>> infidelity.value < 1e-5 * infidelity.reference  # a linear model is explained in full
        True
    """
    names = selected(metrics)
    check_model(model, "model")
    if proxy is not None:
        check_model(proxy, "proxy")
    check_limit(max_examples_per_batch)
    _check_numbers(seed, noise_std, perturb_radius, infidelity_samples, sensitivity_samples)
    _check_needs(names, proxy=proxy, retraining=retraining)
    sample = draw_sample(
        data, limit, seed, pool=OFF_MANIFOLD_GRADIENT.name in names and layer is None, ids=layer is not None
    )
    device = _device_of(model, sample.tensors[0])
    if retraining is not None:
        retraining, skipped = retraining.gathered(seed)
        sample = replace(sample, skipped=tuple(dict.fromkeys((*sample.skipped, *skipped))))
    check_effort(effort)
    for title, method in methods_of(attributions, torch.zeros(1, 1, device="cpu")).items():
        attribution_maker(method.make, f"attributions[{title!r}]", model=model)
    with _measuring(device, model, proxy or model), counted_runs(model) as runs:
        subject = subject_of(
            model,
            sample,
            device,
            max_examples_per_batch,
            layer=layer,
            additional_forward_args=additional_forward_args,
            channel_dim=channel_dim,
            standardize=standardize,
            target=target,
            class_names=class_names,
        )
        inputs, logits = subject.inputs, subject.logits
        task = task_of(task, subject, sample.labels)
        labels, no_labels = fitting_labels(sample, subject, task)
        titles = Titles.of(
            sample, subject, class_titles(class_names, sample, logits.shape[1], task), feature_names, tokens
        )
        methods = methods_of(attributions, inputs)
        budget = budget_for(effort, subject.model, inputs[:1], *([] if subject.rows is None else [subject.rows[:1]]))
        left_out = budget.left_out if attributions is None else ()
        methods = {title: method for title, method in methods.items() if title not in left_out}
        if attributions is None and (task == "regression" or logits.shape[1] == 1):  # nothing to be centered by
            methods = {title: method for title, method in methods.items() if not title.endswith(CENTERED)}
        setting = Setting(
            model=subject.model,
            inputs=inputs,
            rows=subject.rows,
            labels=labels,
            target=targets_of(target, subject, labels, task),
            task=task,
            kind=subject.kind,
            no_labels=no_labels,
            logits=logits,
            pool=subject.pool,
            seed=seed,
            noise_std=_NOISE * deviation(inputs) if noise_std is None else noise_std,
            perturb_radius=_RADIUS * deviation(inputs) if perturb_radius is None else perturb_radius,
            infidelity_samples=infidelity_samples,
            sensitivity_samples=min(sensitivity_samples, budget.sensitivity_samples or sensitivity_samples),
            batch=max_examples_per_batch,
            proxy=proxy,
            retraining=retraining,
            jobs=None if store is None else Path(store) / "retraining",
            show_progress=show_progress,
            budget=budget,
            runs=runs if layer is None else None,  # which sees ids, not what is put in their place
        )
        settings = {"model": name or _name_of(model), **_settings(setting), "left_out": list(left_out)}
        if subject.scales is not None:
            settings["scales"] = subject.scales
        settings["unlike_scales"] = subject.scales is None and of_unlike_scales(inputs, subject.kind)
        rows, row, maps = _measure(setting, methods, names, None if store is None else Store(Path(store)))
        cost = {} if setting.runs is None else setting.runs.counts()
        shown = titles.maps(setting, subject.values, maps)
        return AuditReport(rows, row, settings, sample.skipped, shown, cost)


def check_names(
    attributions: Mapping[str, Callable[..., Any] | Attribution | Method | str] | Iterable[str] | None = None,
    metrics: Iterable[str] | None = None,
) -> None:
    """Raise what `audit` would of its methods and figures, before a model is trained or data are read for it.

    Args:
        attributions: As `audit`'s.
        metrics: As `audit`'s.

    Raises:
        TypeError: Something else than names and functions of the model.
        ValueError: No methods or figures, or unknown ones.

    Example:
        >>> import torch
        >>> check_names(["Saliency", "FullGrad, centered"], ["infidelity"])
        >>> check_names(["Salience"])
        Traceback (most recent call last):
        ValueError: there is no attribution 'Salience'; there are 'Saliency', ...
    """
    selected(metrics)
    methods_of(attributions, torch.zeros(1, 1, 1, 1, device="cpu"))  # the options, which inputs decide, are not used


@contextmanager
def _measuring(device: torch.device, *models: Callable[..., Any]) -> Iterator[None]:
    """Within, models are in evaluation mode, gradients exist, and random states are left as they were."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        replayable(device),
        evaluation_mode(models[0]),
        evaluation_mode(models[1]),
        differentiable(models[0], device),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r"Input Tensor \d+ did not already require gradients", UserWarning)
        warnings.filterwarnings("ignore", "Setting forward, backward hooks and attributes", UserWarning)
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations", UserWarning)
        yield


def _measure(
    setting: Setting, methods: Mapping[str, Method], names: tuple[str, ...], store: Store | None
) -> tuple[dict[str, dict[str, Measured]], dict[str, Measured], dict[str, Tensor]]:
    """What is measured of the methods and of the model, and what is drawn of the methods."""
    of_model = [figure for figure in MODEL_FIGURES if figure.name in names and figure.task in (None, setting.task)]
    of_method = [figure for figure in METHOD_FIGURES if figure.name in names]
    total = len(of_model) + len(methods) * (len(of_method) + bool(of_method))
    rows: dict[str, dict[str, Measured]] = {name: {} for name in methods}
    maps: dict[str, Tensor] = {}
    with tqdm(total=total, desc="audit", unit="figure", disable=not setting.show_progress) as bar:
        measurements = Measurements(setting, store, bar)
        row = {figure.name: measurements.of_model(figure) for figure in of_model}
        for name, method in methods.items() if of_method else ():
            explanation = Explanation(setting, name, method)
            rows[name] = {figure.name: measurements.of_method(figure, explanation) for figure in of_method}
            drawn = measurements.maps(explanation)
            if drawn is not None:
                maps[name] = drawn
    return rows, row, maps


def _settings(setting: Setting) -> dict[str, Any]:
    return {
        "examples": len(setting.inputs),
        "shape": list(setting.inputs.shape[1:]),
        "classes": setting.classes,
        "outputs": setting.outputs,
        "kind": setting.kind,
        "task": setting.task,
        "explained_classes": len(setting.target.unique()),
        "seed": setting.seed,
        "device": str(setting.inputs.device),
        "noise_std": setting.noise_std,
        "perturb_radius": setting.perturb_radius,
        "infidelity_samples": setting.infidelity_samples,
        "sensitivity_samples": setting.sensitivity_samples,
        "effort": "thorough" if setting.budget == THOROUGH else "default",
        "torch": torch.__version__,
    }


def _check_needs(names: tuple[str, ...], **arguments: Any) -> None:
    """What a figure needs with the figure, and what only a figure needs with it."""
    for name, figure in FIGURES.items():
        if figure.needs is not None:
            argument = arguments[figure.needs]
            if name in names and argument is None:
                raise ValueError(f"the metric {name!r} needs the argument {figure.needs}")
            if name not in names and argument is not None:
                raise ValueError(
                    f"{figure.needs} is for the metric {name!r}; ask for it, as in metrics=['default', {name!r}]"
                )


def _check_numbers(
    seed: int, noise_std: float | None, perturb_radius: float | None, infidelity_samples: int, sensitivity_samples: int
) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, but is {seed!r}")
    for what, size in (("noise_std", noise_std), ("perturb_radius", perturb_radius)):
        if size is not None and not 0 < size < math.inf:
            raise ValueError(f"{what} must be positive and finite, but is {size!r}")
    for what, samples in (("infidelity_samples", infidelity_samples), ("sensitivity_samples", sensitivity_samples)):
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"{what} must be a positive integer, but is {samples!r}")


def _device_of(model: Any, inputs: Tensor) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else inputs.device


def _name_of(model: Any) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", type(model).__name__)
