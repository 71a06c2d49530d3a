"""Torchvision's data sets, from small files in their own formats."""

import copyreg
import gzip
import hashlib
import pickle
import struct
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from captum_density.datasets import block_mnist, cifar10, imagenet10, mnist, svhn
from tests.datasets.blocks import blocks_of


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array):
    """The format of MNIST's files: two zeros, the code of bytes, the sizes, the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_arrays():
    draw = np.random.RandomState(1)
    return {
        "train-images-idx3-ubyte": draw.randint(256, size=(30, 28, 28)).astype(np.uint8),
        "train-labels-idx1-ubyte": draw.randint(10, size=30).astype(np.uint8),
        "t10k-images-idx3-ubyte": draw.randint(256, size=(20, 28, 28)).astype(np.uint8),
        "t10k-labels-idx1-ubyte": draw.randint(10, size=20).astype(np.uint8),
    }


def assert_splits(data, train_bytes, train_labels, test_bytes, test_labels):
    for images, labels, stored, classes in (
        (data.train_images, data.train_labels, train_bytes, train_labels),
        (data.test_images, data.test_labels, test_bytes, test_labels),
    ):
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert labels.dtype == torch.int64
        assert torch.equal(images, torch.from_numpy(stored.astype(np.float32)) / 255)
        assert labels.tolist() == list(classes)


@pytest.mark.parametrize("fashion", [False, True])
def test_mnist_and_its_blocks(fashion, tmp_path, untouched):
    folder = tmp_path / ("FashionMNIST" if fashion else "MNIST") / "raw"
    folder.mkdir(parents=True)
    arrays = mnist_arrays()
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    train, train_labels, test, test_labels = arrays.values()
    data = mnist(tmp_path, fashion=fashion)
    assert_splits(data, train[:, None], train_labels, test[:, None], test_labels)

    blocks = block_mnist(str(tmp_path), fashion=fashion, null="mean", seed=4)
    assert blocks.train.images.shape == (30, 1, 56, 28)
    assert torch.equal(blocks_of(blocks.train)[0], data.train_images)
    signal, null = blocks_of(blocks.test)
    assert torch.equal(signal, data.test_images)
    torch.testing.assert_close(null, data.train_images.mean(0).expand_as(null))
    assert not torch.equal(blocks.train.signal_on_top[:20], blocks.test.signal_on_top)
    assert all(split.signal_on_top.all() for split in block_mnist(tmp_path, fashion=fashion, position="top"))
    with pytest.raises(FileNotFoundError, match=f"^{'MNIST' if fashion else 'FashionMNIST'} is not under"):
        mnist(tmp_path, fashion=not fashion)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, array in mnist_arrays().items():
        (folder / name).write_bytes(idx(array))
    monkeypatch.delenv("CAPTUM_DENSITY_DATA", raising=False)
    for load in (mnist, block_mnist, cifar10):
        with pytest.raises(ValueError, match="CAPTUM_DENSITY_DATA"):
            load()
    monkeypatch.setenv("CAPTUM_DENSITY_DATA", str(tmp_path))
    assert len(mnist().train_images) == len(block_mnist().train.images) == 30
    with pytest.raises(FileNotFoundError, match="pass the folder"):
        mnist(tmp_path / "elsewhere")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder of MNIST's gzipped files, which a server on this machine gives torchvision."""
    from torchvision.datasets import MNIST

    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name, array in mnist_arrays().items():
        path = folder / f"{name}.gz"
        path.write_bytes(gzip.compress(idx(array)))
        resources.append((path.name, md5(path)))
    monkeypatch.setattr(MNIST, "resources", resources)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_download_fetches_what_is_missing(mirror, tmp_path):
    root = tmp_path / "root"
    with pytest.raises(FileNotFoundError, match="download=True"):
        block_mnist(root)
    data = block_mnist(root, download=True)
    assert len(data.train) == 30
    assert len(block_mnist(root).test) == 20
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(b"cut off")
    with pytest.raises(RuntimeError, match=r"Error downloading|corrupted"):  # the words of torchvision, new and old
        mnist(tmp_path / "elsewhere", download=True)


@pytest.fixture
def svhn_folder(tmp_path, monkeypatch):
    """MATLAB files as SVHN's: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    draw = np.random.RandomState(2)
    stored, table = {}, {}
    for split, n in (("train", 12), ("test", 7)):
        stored[split] = draw.randint(256, size=(n, 3, 32, 32)).astype(np.uint8), np.arange(n) % 10
        path = tmp_path / f"{split}_32x32.mat"
        labels = np.where(stored[split][1] == 0, 10, stored[split][1]).astype(np.uint8)
        savemat(path, {"X": stored[split][0].transpose(2, 3, 1, 0), "y": labels[:, None]})
        table[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", table)
    return tmp_path, stored


def test_svhn(svhn_folder, untouched):
    folder, stored = svhn_folder
    assert_splits(svhn(folder), *stored["train"], *stored["test"])
    (folder / "test_32x32.mat").write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match=r"^SVHN is not under .*, or is damaged; pass .*download=True$"):
        svhn(folder)


def test_svhn_without_scipy_names_the_extra(svhn_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"captum-density\[demo\]"):
        svhn(svhn_folder[0])


def write_pickle(path, content):
    """As Python 2 and the NumPy of 2009 wrote it: protocol 2, and a dtype's flags as 0 and 1."""

    def old_dtype(dtype):
        function, (name, *_), state = dtype.__reduce__()
        return function, (name, 0, 1), state

    with path.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=2)
        pickler.dispatch_table = copyreg.dispatch_table | {type(np.dtype(np.uint8)): old_dtype}
        pickler.dump(content)


def test_cifar10(tmp_path, monkeypatch, untouched):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    draw = np.random.RandomState(3)
    stored, sums = {}, {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        stored[name] = draw.randint(256, size=(4, 3072)).astype(np.uint8), draw.randint(10, size=4).tolist()
        write_pickle(folder / name, {"data": stored[name][0], "labels": stored[name][1]})
        sums[name] = [name, md5(folder / name)]
    write_pickle(folder / "batches.meta", {"label_names": list("abcdefghij")})
    test = sums.pop("test_batch")
    monkeypatch.setattr(CIFAR10, "train_list", list(sums.values()))
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    train = [stored[name] for name in sums]
    assert_splits(
        cifar10(tmp_path),
        # A row of 3072 bytes is 1024 of red, 1024 of green, 1024 of blue.
        np.concatenate([images for images, _ in train]).reshape(20, 3, 32, 32),
        [label for _, labels in train for label in labels],
        stored["test_batch"][0].reshape(4, 3, 32, 32),
        stored["test_batch"][1],
    )
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"^CIFAR10 is not under"):
        cifar10(tmp_path)


@pytest.fixture
def image_folder(tmp_path):
    """Twelve folders of PNGs, the k-th all of brightness 20 k; the ninth has two images, and one is empty."""
    from PIL import Image

    for k in range(12):
        folder = tmp_path / "train" / f"n{k:02}"
        folder.mkdir(parents=True)
        for i in range(1 + (k == 8)):
            Image.new("RGB", (150, 140), (20 * k, 0, i)).save(folder / f"{i}.png")
    (tmp_path / "train" / "n99").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("no folder")
    return tmp_path


def test_imagenet10_by_name(image_folder, untouched):
    names = [f"n{k:02}" for k in (11, 8, 0, 1, 2, 3, 4, 5, 6, 7)]
    data = imagenet10(image_folder, names)
    assert len(data) == 11
    assert data.classes == names
    images, labels = zip(*data, strict=True)
    assert sorted(labels) == [0, 1, 1, *range(2, 10)]
    for image, label in zip(images, labels, strict=True):
        assert image.shape == (3, 112, 112)
        assert image.dtype == torch.float32
        torch.testing.assert_close(image[0], torch.full((112, 112), 20 * int(names[label][1:]) / 255))
    # Workers that are spawned get it pickled.
    assert [label for _, label in pickle.loads(pickle.dumps(data))] == list(labels)


def test_imagenet10_groups_and_transform(image_folder):
    groups = [["n08", "n11"], "n00", ("n01", "n02", "n03"), *(f"n{k:02}" for k in range(4, 8)), "n09", "n10"]
    with pytest.raises(ValueError, match="classes has 9 entries, not 10"):
        imagenet10(image_folder, groups)
    groups[2:3] = [("n01", "n02"), "n03"]
    data = imagenet10(str(image_folder), groups, transform=lambda image: image.getpixel((0, 0))[0] // 20)
    assert len(data) == 13
    assert data.classes[:3] == ["n08+n11", "n00", "n01+n02"]
    expected = {8: 0, 11: 0, 0: 1, 1: 2, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 9: 8, 10: 9}
    assert {(folder, label) for folder, label in data} == set(expected.items())


def test_imagenet10_takes_ten_folders(image_folder):
    with pytest.raises(ValueError, match=r"train holds 13 folders, not 10; pass classes="):
        imagenet10(image_folder)
    for name in ("n00", "n01", "n99"):
        for file in (image_folder / "train" / name).iterdir():
            file.unlink()
        (image_folder / "train" / name).rmdir()
    (image_folder / "train").rename(image_folder / "val")
    data = imagenet10(image_folder, split="val", transform=lambda image: image.getpixel((0, 0))[0] // 20)
    assert {(folder, label) for folder, label in data} == {(k, k - 2) for k in range(2, 12)}


def test_bad_imagenet10(image_folder):
    names = [f"n{k:02}" for k in range(10)]
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*val; root must hold 'val'"):
        imagenet10(image_folder, names, split="val")
    with pytest.raises(FileNotFoundError, match=r"train has no folder n12, n13$"):
        imagenet10(image_folder, ["n13", "n12", *names[2:]])
    with pytest.raises(ValueError, match=r"classes names more than once: n01, n02$"):
        imagenet10(image_folder, [["n00", "n02"], *names[1:9], "n01"])
    with pytest.raises(FileNotFoundError, match="n99"):
        imagenet10(image_folder, [*names[:9], "n99"])
