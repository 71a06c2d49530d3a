"""BalancedGradients: a model with its own values and the gradients of a balanced view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from captum_density._model.modules import unwrap
from captum_density._model.validation import check_model
from captum_density.rules._choices import Choice, rules_of
from captum_density.rules._mode import TRANSFORMS, RuleMode, in_transform

__all__ = ["BalancedGradients"]


class BalancedGradients(nn.Module):
    r"""A model with its own values, whose gradients by the inputs are those of a linear map that rules choose.

    Every operation y = op(u_1, ..., u_k) of a model can be written as

    .. math:: y = \sum_j A_j u_j + r

    with any linear maps A_j. A gradient takes the Jacobians. On a transformer they leave nearly all of f(x) in r: a
    normalisation does not depend on its input's length, so that by Euler's theorem all that lies before it sums to
    zero. Balanced maps keep f(x) on what is left of the input, and gradient times input becomes an attribution that
    nearly sums to f(x), at the price of one backward pass:

    ================  ==============================  =============================  ===============================
    rules             normalisations, divisors        activation functions           products of activations
    ================  ==============================  =============================  ===============================
    ``"libragrad"``   the divisor is a constant       the secant through             attention weights and gates are
                                                      (0, sigma(0))                  constants; others share alike
    ``"attnlrp"``     as above                        as above                       share alike: values 1/2, queries
                                                                                     and keys 1/4 of the gradient
    ``"cp-lrp"``      as above                        as above                       attention weights, gates and
                                                                                     nonlinear factors are constants
    ``"jacobian"``    the model's own gradient
    ================  ==============================  =============================  ===============================

    A chain of pointwise functions of one activation is one function, however it is spelt; it ends at parameters,
    buffers and tensors that are not scalars. A gate is a nonlinear function that is not 0 at 0 (sigmoid), or a
    softmax, up to scale and shape, where it is a factor; elsewhere it has its own rule.

    The model is not changed, and need not be a module: any function of tensors works, with hand-written attention and
    norms too. It is used as a model by every Captum method that takes gradients, and by `FullGrad`, which then sums to
    f(x) with little left on biases. What these gradients are not: the gradient of any function. Integrated along a path
    they do not sum to f(x) - f(x'); for that see `CompleteDeepLift`.

    Args:
        model: An `nn.Module`, or a function of the inputs; DataParallel, DistributedDataParallel and compiled models
            are run as the module inside. Attributes that this class lacks are the model's.
        rules: The name of a set, or a mapping from operations (their names, as ``"gelu"``, or functions of torch) and
            modules (or their classes) to choices; its key ``"default"`` names the set for all others, "libragrad" if it
            is absent. A choice for a module holds for every operation in it that it fits. Choices: ``"jacobian"``;
            ``"secant"``, of pointwise functions; ``"constant"``, of attention weights, gates and divisors;
            ``"share"``, of products and attention; or a function that takes the call (with ``name``, ``args`` and
            ``kwargs``; calling it gives its value) and returns a tensor of the same value, whose derivative is the map.

    Raises:
        TypeError: If `model` is neither a module nor a function; for TorchScript, whose operations cannot be seen.
        ValueError: A rule set, operation or choice that is not known; when called, a rule that does not keep the value.
        NotImplementedError: When called: activation checkpointing or a torch.func transform inside the model; hooks of
            Captum's DeepLift, LRP, GuidedBackprop or Deconvolution, which put other gradients in place of these.

    Note:
        "attnlrp" reproduces the relevances of the authors' package (lxt 2.1) on Llama, Qwen3, Gemma3 and GPT-2, as
        "cp-lrp" does that package's variant of the same name. Their documentation says that LRP is covered by patents.
        "libragrad" follows the theorems on what keeps f(x): divisors, gates and attention weights pruned, activation
        functions replaced by secants. Papers differ on the gated MLP silu(g) * u: AttnLRP halves the product, CP-LRP
        stops the gate; "libragrad" shares alike, as silu(g) is no gate by the definition above.

    References:
        F. Mehri et al., "LibraGrad: Balancing Gradient Flow for Universally Better Vision Transformer Attributions",
        CVPR 2025, arXiv:2411.16760; R. Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
        Transformers", ICML 2024, arXiv:2402.05602; A. Ali et al., "XAI for Transformers: Better Explanations through
        Conservative Propagation", ICML 2022, arXiv:2202.07304.

    Example:
        Without additive parameters, gradient times input sums to the output:

        >>> import torch
        >>> from captum.attr import InputXGradient
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8, bias=False), torch.nn.LayerNorm(8, bias=False), torch.nn.GELU(),
        ...     torch.nn.Linear(8, 3, bias=False),
        ... )
        >>> x = torch.randn(2, 4)
        >>> attributions = InputXGradient(BalancedGradients(model)).attribute(x, target=1)
        >>> torch.allclose(attributions.sum(1), model(x)[:, 1], atol=1e-5)
        True
    """

    def __init__(self, model: Callable[..., Any], rules: str | Mapping[Any, Choice] = "libragrad") -> None:
        super().__init__()
        check_model(model, "model")
        self.__dict__["rules"] = rules_of(rules)
        self.__dict__["model"] = model
        unwrap(model)
        if isinstance(model, nn.Module):
            # The model's own dictionaries, so that whoever walks over this module sees its names and parameters.
            for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
                self.__dict__[name] = getattr(model, name)
            self.__dict__["training"] = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns.

        Args:
            args: The model's arguments; what depends on a tensor (N, ...) among them is an activation.
            kwargs: Its keyword arguments.

        Returns:
            The model's output, to the bit; gradients by the inputs are those of the rules.

        Raises:
            ValueError: A rule of one's own that does not keep the value.
            NotImplementedError: Activation checkpointing, a torch.func transform, or another method's hooks.
        """
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or self.rules.is_plain:
            return self.model(*args, **kwargs)
        if in_transform():
            raise NotImplementedError(TRANSFORMS)
        return RuleMode(self.rules).run(unwrap(self.model), args, kwargs)

    def train(self, mode: bool = True) -> BalancedGradients:
        """Puts the model in training or evaluation mode."""
        if isinstance(self.model, nn.Module):
            self.model.train(mode)
        self.__dict__["training"] = mode
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "model" not in self.__dict__:
                raise
            return getattr(self.__dict__["model"], name)

    def __repr__(self) -> str:
        model = self.model
        name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
        return f"BalancedGradients({name}, rules={self.rules})"
