"""Find out whether a model's gradients can be trusted as explanations: FullGrad and its family, beside Captum."""

__version__ = "0.1.0"
