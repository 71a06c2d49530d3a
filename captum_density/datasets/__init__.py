"""Data sets to try an explanation on, as plain tensors; in some of them the part that matters is known."""

from captum_density.datasets._block_images import BlockImages as BlockImages
from captum_density.datasets._block_images import BlockSplits as BlockSplits
from captum_density.datasets._block_images import block_digits as block_digits
from captum_density.datasets._block_images import block_mnist as block_mnist
from captum_density.datasets._digits import Digits as Digits
from captum_density.datasets._digits import digits as digits
from captum_density.datasets._efficientnet_lite0 import efficientnet_lite0 as efficientnet_lite0
from captum_density.datasets._feature_leakage import FeatureLeakage as FeatureLeakage
from captum_density.datasets._feature_leakage import feature_leakage as feature_leakage
from captum_density.datasets._photographs import Photographs as Photographs
from captum_density.datasets._photographs import photographs as photographs
from captum_density.datasets._torchvision import ImageSplits as ImageSplits
from captum_density.datasets._torchvision import cifar10 as cifar10
from captum_density.datasets._torchvision import imagenet10 as imagenet10
from captum_density.datasets._torchvision import mnist as mnist
from captum_density.datasets._torchvision import svhn as svhn

__all__ = [
    "BlockImages",
    "BlockSplits",
    "Digits",
    "FeatureLeakage",
    "ImageSplits",
    "Photographs",
    "block_digits",
    "block_mnist",
    "cifar10",
    "digits",
    "efficientnet_lite0",
    "feature_leakage",
    "imagenet10",
    "mnist",
    "photographs",
    "svhn",
]


def __dir__() -> list[str]:
    return __all__
