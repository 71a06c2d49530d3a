"""What keeps a figure from being measured, in words: outputs that are no logits of several classes."""

from captum_density.audit._setting import Setting

__all__ = ["no_density", "no_softmax", "of_one_tensor_and_logits"]


def no_softmax(setting: Setting) -> str:
    """Of what is told by classes beside each other."""
    if setting.task == "regression":
        return "the outputs of a regression are numbers, which no softmax compares"
    return "one output has no other class beside it" if setting.classes == 1 else ""


def no_density(setting: Setting) -> str:
    """Of what takes the outputs for logarithms of a density."""
    return "the outputs of a regression do not say how likely inputs are" if setting.task == "regression" else ""


def of_one_tensor_and_logits(setting: Setting) -> str:
    """Of what runs the model on other inputs than the audited ones, and reads classes."""
    if setting.rows is not None:
        return "the model takes more of an example than a tensor that can be made anew"
    return "a regression has no classes" if setting.task == "regression" else ""
