"""A torchvision ImageFolder whose folders share labels; apart, as torchvision is imported only when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchvision import transforms
from torchvision.datasets import ImageFolder

__all__ = ["GroupedFolders"]


class GroupedFolders(ImageFolder):
    """The images of some folders of a folder; those of one group share a label.

    Args:
        root: What holds the folders.
        groups: The names of the folders of label 0, 1, ...
        transform: From a PIL image; None for a tensor (3, 112, 112) of its middle.
    """

    def __init__(self, root: str, groups: Sequence[Sequence[str]], transform: Callable[[Any], Any] | None) -> None:
        self.groups = groups
        if transform is None:
            transform = transforms.Compose([transforms.Resize(128), transforms.CenterCrop(112), transforms.ToTensor()])
        super().__init__(root, transform=transform)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """The name of each class, and the label of each folder, for ImageFolder."""
        names = ["+".join(group) for group in self.groups]
        return names, {folder: label for label, group in enumerate(self.groups) for folder in group}
