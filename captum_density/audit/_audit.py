"""`audit`: a model and its attribution methods measured on the same examples, each measurement from the same seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import captum
import torch
from captum.attr import Attribution
from torch import Tensor, nn
from tqdm import tqdm

from captum_density import __version__
from captum_density._identity import described as described_as_json
from captum_density._identity import name_of
from captum_density._random import replayable
from captum_density._store import Store
from captum_density._validation import check_limit, class_targets
from captum_density.audit._catalogue import methods_of
from captum_density.audit._examples import Examples, taken
from captum_density.audit._measures import METHOD_MEASURES, MODEL_MEASURES, Measured, chosen, one_line
from captum_density.audit._methods import Method
from captum_density.audit._of_method import OF_METHOD, Explained, Replay
from captum_density.audit._of_model import OF_MODEL
from captum_density.audit._report import AuditReport
from captum_density.audit._setting import Retraining, Setting, evaluating, logits_of
from captum_density.audit._shown import Shown, shown_map

__all__ = ["audit"]

_SCHEMA = 1
# Of the inputs' standard deviation, so that both are small in any unit: 0.11 and 0.02 for digits in [0, 1].
_NOISE, _RADIUS = 0.3, 0.05


def audit(
    model: Callable[..., Tensor],
    data: Any,
    attributions: Mapping[str, Callable[[Any], Attribution] | Method | str] | Iterable[str] | None = None,
    *,
    metrics: Iterable[str] | None = None,
    target: Tensor | Literal["predicted", "label"] = "predicted",
    limit: int | None = 64,
    seed: int = 0,
    noise_std: float | None = None,
    perturb_radius: float | None = None,
    infidelity_samples: int = 100,
    sensitivity_samples: int = 5,
    max_examples_per_batch: int = 32,
    proxy: Callable[..., Tensor] | None = None,
    retraining: Retraining | None = None,
    store: str | Path | None = None,
    show_progress: bool = False,
    name: str | None = None,
) -> AuditReport:
    """Ask of a model whether its gradients, and what is made of them, can be trusted as explanations.

    Every figure is of the same examples and outputs, and every method is given the same perturbations. A method that
    fails is reported in its row, and the others go on. `AuditReport` says in words what follows from the figures.

    The methods' figures are Captum's `infidelity` (Yeh et al., equation 1; values set to 0 with probability 0.2,
    ``normalize=True``) and `sensitivity_max`, and `captum_density.metrics`' `shift_sensitivity`, `pixel_perturbation`
    (beside the mean of five random rankings) and `diff_roar`; the model's are `density_ratio`, the squared norm of
    `captum_density.density.class_score`, `hessian_trace` and `gan_test`.

    Args:
        model: maps (N, ...) to (N, classes), logits. A module is put into evaluation mode for the time of the call.
        data: inputs (N, ...), floating-point; a pair (inputs, labels); a data set of such items; or a `DataLoader`.
            Examples of a data set that raise when they are read are skipped and named in the report.
        attributions: name to a function that makes the attribution for a model, which a Captum class is
            (``{"IG": IntegratedGradients}``), or to a `Method` where options are needed; or names that the report knows
            (``["Saliency", "FullGrad, centered"]``); None for nine of them.
        metrics: names of the figures; "default" for all but "diff_roar" and "gan_test", "all" for all.
        target: which output to explain: that of the predicted class, of the label, or those in a tensor (N,), one for
            each audited example.
        limit: at most so many examples, drawn at random where there are more; None for all.
        seed: of all perturbations and of methods that draw noise, from PyTorch, NumPy or Python; the global random
            states are left as they were.
        noise_std: standard deviation of the noise in the density's figures, in the inputs' unit; None for 0.3 of the
            inputs' standard deviation.
        perturb_radius: the largest change of an input value in sensitivity_max; None for 0.05 of it.
        infidelity_samples: perturbations per example of infidelity.
        sensitivity_samples: perturbations per example of sensitivity_max.
        max_examples_per_batch: most examples, copies included, that run at once, where a method lets itself be told.
        proxy: another classifier of the same classes, for "gan_test".
        retraining: what "diff_roar" retrains, and on what.
        store: a folder in which every finished figure is remembered: an audit that was stopped goes on where it was,
            and gives the report that it would have given.
        show_progress: whether to show a progress bar.
        name: of the model in the report; None for its class.

    Returns:
        An `AuditReport`.

    Raises:
        TypeError: data, inputs or labels of the wrong kind; a model that returns no tensor; a method that is an
            attribution already made.
        ValueError: no examples, NaN or infinite ones, a model that fails on them or returns no (N, classes), a target
            that does not fit, no methods, unknown names, or a figure asked for without what it needs.
        OSError: the store cannot be written to.

    References:
        C.-K. Yeh, C.-Y. Hsieh, A. S. Suggala, D. I. Inouye and P. Ravikumar, "On the (In)fidelity and Sensitivity of
        Explanations", NeurIPS 2019, arXiv 1901.09392; S. Srinivas and F. Fleuret, ICLR 2021, arXiv 2006.09128; H. Shah,
        P. Jain and P. Netrapalli, NeurIPS 2021, arXiv 2102.12781.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient, IntegratedGradients
        >>> model, x = torch.nn.Linear(3, 2), torch.rand(8, 3)
        >>> report = audit(model, (x, torch.zeros(8).long()), {"IG": IntegratedGradients, "grad": InputXGradient})
        >>> list(report.methods)
        ['IG', 'grad']
        >>> report.methods["IG"]["completeness_gap"].value < 1e-3, report.methods["grad"]["completeness_gap"].text()
        (True, '-')
        >>> found = report.methods["IG"]["infidelity"]
        >>> found.value < 1e-5 * found.reference  # a linear model is explained in full
        True
    """
    wanted = chosen(metrics)
    check_limit(max_examples_per_batch)
    for what, needed in (("gan_test", proxy), ("diff_roar", retraining)):
        if what in wanted and needed is None:
            raise ValueError(
                f"the metric {what!r} needs the argument {'proxy' if what == 'gan_test' else 'retraining'}"
            )
    examples = taken(data, limit, seed)
    inputs = examples.inputs.to(_device_of(model))
    if retraining is not None and "diff_roar" in wanted:
        retraining, skipped = retraining.gathered(seed)
        examples = replace(examples, skipped=tuple(dict.fromkeys((*examples.skipped, *skipped))))
    methods = methods_of(attributions, inputs)
    with replayable(inputs.device), evaluating(model), evaluating(proxy or model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Input Tensor \d+ did not already require gradients", UserWarning)
        warnings.filterwarnings("ignore", "Setting forward, backward hooks and attributes", UserWarning)
        logits = logits_of(model, inputs, max_examples_per_batch)
        labels, remark = _fitting_labels(examples, logits)
        deviation = inputs.double().std().item() if inputs.numel() > 1 else 0.0
        setting = Setting(
            model=model,
            inputs=inputs,
            labels=labels,
            target=_targets(target, logits, labels),
            classes=logits.shape[1],
            seed=seed,
            noise_std=_NOISE * (deviation or 1.0) if noise_std is None else noise_std,
            perturb_radius=_RADIUS * (deviation or 1.0) if perturb_radius is None else perturb_radius,
            infidelity_samples=infidelity_samples,
            sensitivity_samples=sensitivity_samples,
            batch=max_examples_per_batch,
            proxy=proxy if "gan_test" in wanted else None,
            retraining=retraining if "diff_roar" in wanted else None,
            cells=None if store is None else Path(store) / "retraining",
            show_progress=show_progress,
        )
        return _measured(
            setting, methods, wanted, None if store is None else Store(Path(store)), examples, remark, name
        )


def _measured(
    setting: Setting,
    methods: Mapping[str, Method],
    wanted: tuple[str, ...],
    store: Store | None,
    examples: Examples,
    remark: str,
    name: str | None,
) -> AuditReport:
    of_model = [measure.name for measure in MODEL_MEASURES if measure.name in wanted]
    of_method = [measure.name for measure in METHOD_MEASURES if measure.name in wanted]
    total = len(of_model) + len(methods) * (len(of_method) + 1)
    with tqdm(total=total, desc="audit", unit="figure", disable=not setting.show_progress) as bar:
        cells = _Cells(setting, store, bar)
        model = {each: cells.figure(("model", each), partial(OF_MODEL[each], setting)) for each in of_model}
        if "accuracy" in model and remark and setting.labels is None:
            model["accuracy"] = Measured(None, note=remark)
        found: dict[str, dict[str, Measured]] = {}
        maps: dict[str, Tensor] = {}
        replays: dict[int, Replay] = {}
        for title, method in methods.items():
            explained = Explained(setting, title, method, replays)
            identity = None if store is None else described_as_json(method)
            failure = None
            found[title] = {}
            for each in of_method:
                key = ("method", identity, each)
                found[title][each] = cells.figure(key, partial(OF_METHOD[each], explained), failure)
                failure = failure or explained.failure
            shown = cells.shown(("map", identity), explained)
            if shown is not None:
                maps[title] = shown
    classes = {"examples": len(setting.inputs), "shape": list(setting.inputs.shape[1:]), "classes": setting.classes}
    settings = {
        "model": name or _name_of(setting.model),
        **classes,
        "seed": setting.seed,
        "device": str(setting.inputs.device),
        "noise_std": setting.noise_std,
        "perturb_radius": setting.perturb_radius,
        "infidelity_samples": setting.infidelity_samples,
        "sensitivity_samples": setting.sensitivity_samples,
        "torch": torch.__version__,
    }
    return AuditReport(found, model, settings, examples.skipped, Shown.of(setting.inputs, setting.target, maps))


class _Cells:
    """Figures one by one: from the store where they are there, else measured and stored."""

    def __init__(self, setting: Setting, store: Store | None, bar: Any) -> None:
        self._setting, self._store, self._bar = setting, store, bar
        self._ground = None if store is None else name_of(_ground(setting))

    def figure(self, key: tuple[Any, ...], measure: Callable[[], Measured], failure: str | None = None) -> Measured:
        """One figure; an error becomes a failed one, which is tried again next time."""
        self._bar.set_postfix_str(str(key[-1]), refresh=False)
        identity = self._identity(key)
        known = None if self._store is None else self._store.read(identity)
        if known is not None:
            measured = Measured(**known)
        elif failure is not None:
            measured = Measured(None, note=failure, failed=True)
        else:
            try:
                measured = measure()
            except Exception as error:  # whatever a method raises is said in its row
                measured = Measured(None, note=one_line(error), failed=True)
            if self._store is not None and not measured.failed:
                self._store.write(identity, asdict(measured))
        self._bar.update()
        return measured

    def shown(self, key: tuple[Any, ...], explained: Explained) -> Tensor | None:
        """What is drawn of a method's attributions; None where it fails, or the inputs are no images."""
        identity = self._identity(key)
        known = None if self._store is None else self._store.read(identity)
        if known is not None:
            found = Shown.unpacked(known["map"])
        elif explained.failure is not None or not Shown.can_show(self._setting.inputs):
            found = None
        else:
            try:
                found = shown_map(explained.attributions)
            except Exception:  # said by the figures already
                found = None
            if self._store is not None and found is not None:
                self._store.write(identity, {"map": Shown.packed(found)})
        self._bar.update()
        return found

    def _identity(self, key: tuple[Any, ...]) -> dict[str, Any]:
        return {"audit": _SCHEMA, "ground": self._ground, "key": list(key)}


def _ground(setting: Setting) -> dict[str, Any]:
    """What every figure depends on, as JSON."""
    told = "inputs labels target seed noise_std perturb_radius infidelity_samples sensitivity_samples batch".split()
    told += ["model", "proxy", "retraining"]
    found = {each: described_as_json(getattr(setting, each)) for each in told}
    versions = [__version__, captum.__version__, torch.__version__]
    return found | {"device": str(setting.inputs.device), "versions": versions}


def _device_of(model: Any) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def _name_of(model: Any) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", type(model).__name__)


def _fitting_labels(examples: Examples, logits: Tensor) -> tuple[Tensor | None, str]:
    if examples.labels is None:
        return None, "the data have no labels"
    highest = max(2, logits.shape[1]) - 1
    if examples.classes is not None and examples.classes != highest + 1:
        return None, f"the data have {examples.classes} classes and the model {logits.shape[1]} outputs"
    if examples.labels.min() < 0 or examples.labels.max() > highest:
        return (
            None,
            f"labels reach from {int(examples.labels.min())} to {int(examples.labels.max())}, outputs to {highest}",
        )
    return examples.labels.to(logits.device), ""


def _targets(target: Any, logits: Tensor, labels: Tensor | None) -> Tensor:
    if isinstance(target, Tensor):
        return class_targets(target, len(logits), logits.device)
    if target == "predicted":
        return logits.argmax(dim=1)
    if target == "label":
        if labels is None:
            raise ValueError("target='label' needs labels that fit the model's outputs, and there are none")
        return labels if logits.shape[1] > 1 else torch.zeros_like(labels)
    raise ValueError(f"target must be 'predicted', 'label' or a tensor (N,), but is {target!r}")
