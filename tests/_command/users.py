"""A user: a package with a model, data and attributions, folders of images, and the command run on them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from captum_density.__main__ import main
from captum_density.audit import AuditReport

MODEL = '''
import torch
from torch import nn
from torchvision.models import VisionTransformer


class Net(nn.Module):
    def __init__(self, channels=3, classes=3):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(4 * 16, classes)

    def forward(self, x):
        return self.linear(nn.functional.adaptive_avg_pool2d(self.relu(self.convolution(x)), 4).flatten(1))


class Twice(Net):
    """DeepLift refuses a ReLU that is used again."""

    def forward(self, x):
        return super().forward(self.relu(x))


class Returning(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.net, self.of = Net(), of

    def forward(self, x):
        return self.of(self.net(x))


def build():
    return Net()


def judge():
    return Net().double().float()


def vit():
    made = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
    nn.init.normal_(made.heads.head.weight)  # as made, it is zero
    return made


def twice():
    return Twice()


def cats():
    """Says class 281 of 1000, the tabby, whatever it is shown."""
    net = Net(classes=1000)
    with torch.no_grad():
        net.linear.bias[281] += 100
    return net


def normed():
    net = Net()
    return nn.Sequential(nn.BatchNorm2d(3), net)


def gray():
    return Net(channels=1)


def weight_normed():
    net = Net()
    nn.utils.parametrizations.weight_norm(net.convolution)
    return net


def sized(classes, *, channels=3):
    return Net(channels, classes)


def a_dict():
    return Returning(lambda logits: {"logits": logits})


def a_tuple():
    return Returning(lambda logits: (logits, None))


def nan():
    return Returning(lambda logits: logits * float("nan"))


def misspelt():
    return Returning(lambda logits: logit)


def raises():
    raise RuntimeError("no such\\nlayer")


def leaves():
    raise SystemExit(3)


def no_module():
    return "a model"


ready = Net()
number = 3
'''
DATA = """
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision import transforms

generator = torch.Generator().manual_seed(5)
x, y = torch.rand(12, 3, 8, 8, generator=generator), torch.randint(3, (12,), generator=generator)


class Items(Dataset):
    samples = x  # no paths

    def __len__(self):
        return len(x)

    def __getitem__(self, i):
        return x[i], int(y[i])


class Broken(Items):
    def __getitem__(self, i):
        if i in (3, 7):
            raise KeyError("no such record")
        return super().__getitem__(i)


class BrokenStream(IterableDataset):
    def __iter__(self):
        yield x[:4], y[:4]
        raise OSError("the disk is gone")


class Named(Items):
    def __getitem__(self, i):
        return x[i], "cat"


class Drawn(Items):
    def __getitem__(self, i):
        return x[i] + torch.rand(3, 8, 8), int(y[i])


dataset, broken, stream, named, drawn = Items(), Broken(), BrokenStream(), Named(), Drawn()
pair, alone, number = (x, y), x, 3
loader = DataLoader(dataset, batch_size=5)
shuffled = DataLoader(dataset, batch_size=5, shuffle=True)
uneven = [(x[:4], y[:4]), (x[4:, :, :6], y[4:])]
floats = (x, y.float())
levels = [((x * 255).to(torch.uint8), y)]
deep_levels = [((x * 65535).to(torch.int32), y)]
resize = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])


class TooLarge(Items):
    def __getitem__(self, i):
        return torch.zeros(1).expand(3, 10**7, 10**7), 0


def make_resize(side=8):
    return transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor()])


def resized(image, side=8):
    return make_resize(side)(image)


class Resize:
    def __call__(self, image):
        return resize(image)


def sized_transform(side):
    return make_resize(side)


def no_transform():
    return 3


def function():
    return x, y


def random():
    return torch.rand(12, 3, 8, 8), y


def raises():
    raise RuntimeError("no such file")
"""
ATTRIBUTIONS = '''
import signal
import time
from pathlib import Path

from captum.attr import InputXGradient, Saliency


class Raises(Saliency):
    def attribute(self, inputs, target=None):
        raise RuntimeError("out of\\npatience")


class Slow(Saliency):
    """Writes down each call, and takes its time; at the call that a file names, it is interrupted."""

    def attribute(self, inputs, target=None):
        with Path("calls.txt").open("a") as file:
            file.write("x")
        moment = Path("interrupted_at.txt")
        if moment.exists() and len(Path("calls.txt").read_text()) == int(moment.read_text()):
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        return super().attribute(inputs, target=target, abs=False)


def signed(model):
    return InputXGradient(model)


number = 3
'''
FEW = ["--attributions", "Saliency", "FullGrad, complete"]


def write_images(folder, sizes=(8,), n=6, classes=("cat", "dog", "fish")):
    """Images whose brightest channel is, mostly, their class; every other one a JPEG."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            side = sizes[i % len(sizes)]
            image = random.integers(0, 200, (side, side + sizes[-1] - sizes[0], 3), dtype=np.uint8)
            image[..., label % 3] += 50
            Image.fromarray(image).save(folder / name / f"{i}.{'jpg' if i % 2 else 'png'}")
    return folder


def forget_modules():
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def audited(*arguments, model="build", data="images", out="report"):
    main(["--model", f"my_package.model:{model}", "--data", data, "--out", str(out), *arguments])
    return AuditReport.from_json((Path(out) / "report.json").read_text())


def untimed(report):
    """Everything but the seconds, which no seed decides, and what it cost, which is less for the rest of an audit."""
    result = json.loads(report.to_json())
    del result["cost"]
    for figures in result["methods"].values():
        figures.pop("seconds", None)
    return result


def user_model(name="build", seed=1):
    """The user's model as the test makes it, in the state that the weights' file has."""
    import my_package.model

    torch.manual_seed(seed)
    return getattr(my_package.model, name)().eval()


def by_hand(model, x, y):
    """Accuracy and mean squared gradient of the predicted logit."""
    x = x.clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), x)
    return (logits.argmax(1) == y).double().mean().item(), gradient.double().flatten(1).square().sum(1).mean().item()


def of_folder(folder, transform):
    pairs = list(ImageFolder(str(folder), transform=transform))
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def check_model_figures(report, model, x, y):
    accuracy, squared = by_hand(model, x, y)
    assert report.model["accuracy"].value == accuracy
    assert report.model["gradient_norm"].value == pytest.approx(squared, rel=1e-4)


def failures(report):
    rows = {**report.methods, "model": report.model}
    return {name for name, figures in rows.items() for figure in figures.values() if figure.failed}


def refused(capsys, *arguments):
    """The one line that is said."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("python -m captum_density: error: ") and printed.err.count("\n") == 1, printed.err
    assert printed.err.endswith("\n") and len(printed.err) < 700
    return printed.err
