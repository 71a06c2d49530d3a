"""Losses of a model's input-gradients, to add to a training loss: `loss(forward_func, inputs, target)`."""

from captum_density.losses._fooling import FoolingLoss as FoolingLoss

__all__ = ["FoolingLoss"]
