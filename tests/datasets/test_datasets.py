import copyreg
import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import captum_density
from captum_density.datasets import (
    BlockImages,
    block_digits,
    block_mnist,
    cifar10,
    digits,
    feature_leakage,
    imagenet10,
    mnist,
    svhn,
)


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def untouched():
    """The global generators are as they were when the test ends."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_import_is_light():
    code = "import sys, captum_density.datasets; sys.exit('torchvision' in sys.modules or 'sklearn' in sys.modules)"
    root = Path(captum_density.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_shapes_types_and_range():
    data = digits()
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.shape == images.shape[:1]
        assert images.is_contiguous()
        assert images.min() == 0
        assert images.max() == 1
        assert labels.unique().tolist() == list(range(10))


def test_split_is_the_stored_data_once_each():
    from sklearn.datasets import load_digits

    stored = load_digits()
    data = digits()
    images = torch.cat([data.train_images, data.test_images]).flatten(1).mul(16).numpy()
    labels = torch.cat([data.train_labels, data.test_labels]).numpy()
    ours = np.column_stack([images, labels])
    theirs = np.column_stack([stored.data, stored.target])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_split_is_fixed_and_leaves_random_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    first = digits()
    torch.manual_seed(7)
    np.random.seed(7)
    second = digits()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # The labels of the first test images, written down when the split was fixed: a reshuffle would change every figure.
    assert first.test_labels[:12].tolist() == [7, 9, 4, 7, 0, 2, 6, 1, 3, 1, 3, 7]
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    digits()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"captum-density\[demo\]"):
        digits()


# Block images


def blocks_of(data):
    """The signal and the null block of each example, cut out through the masks."""
    n, channels, rows, width = data.images.shape
    masks = data.signal_masks.expand_as(data.images)
    shape = (n, channels, rows // 2, width)
    return data.images[masks].reshape(shape), data.images[~masks].reshape(shape)


@pytest.mark.parametrize("null", ["square", "mean", "image"])
@pytest.mark.parametrize("position", ["random", "top"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_are_the_image_and_the_null(null, position, dtype, untouched):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 7, 5, generator=generator, dtype=dtype)
    labels = torch.arange(40)
    null = torch.rand(3, 7, 5, generator=generator, dtype=dtype) if null == "image" else null
    before = images.clone()
    data = BlockImages(images, labels, null=null, position=position, seed=3)
    assert data.images.shape == (40, 3, 14, 5)
    assert data.images.dtype == dtype
    assert data.images.is_contiguous()
    assert data.signal_masks.shape == (40, 1, 14, 5)
    assert data.signal_masks.dtype == torch.bool
    signal, rest = blocks_of(data)
    assert torch.equal(signal, images)
    assert torch.equal(rest, data.null.expand_as(images))
    assert torch.equal(images, before)
    assert torch.equal(data.signal_masks[:, 0, :7].all((1, 2)), data.signal_on_top)
    assert torch.equal(data.signal_masks[:, 0, 7:].any((1, 2)), ~data.signal_on_top)
    if null == "mean":
        torch.testing.assert_close(data.null, sum(images) / 40)
    elif null != "square":
        assert torch.equal(data.null, null)


def test_null_image_takes_the_images_dtype():
    data = BlockImages(torch.ones(2, 1, 2, 2), torch.zeros(2), null=torch.zeros(1, 2, 2, dtype=torch.float64))
    assert data.images.dtype == torch.float32


def test_square_is_drawn_in_the_images_range():
    images = torch.zeros(1, 2, 8, 10)
    images[0, 0, 0, 0], images[0, 1, 0, 0] = -1, 3
    drawn = """
        ..........
        ..######..
        ..#....#..
        ..#....#..
        ..#....#..
        ..#....#..
        ..######..
        ..........
    """
    expected = torch.tensor([[3.0 if c == "#" else -1.0 for c in line] for line in drawn.split()])
    assert torch.equal(BlockImages(images, torch.zeros(1)).null, expected.expand(2, 8, 10))


def test_square_has_diagonals_on_mnist():
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 0, 0] = 1
    null = BlockImages(images, torch.zeros(1)).null[0]
    rows, columns = null.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 4, 23)
    inside = range(4, 24)
    assert all(
        null[i, i] == null[i, 27 - i] == null[i, 4] == null[i, 23] == null[4, i] == null[23, i] == 1 for i in inside
    )
    assert all(torch.equal(null, turned) for turned in (null.T, null.flip(0), null.flip(1)))
    assert 0.2 < null.mean() < 0.35


def test_positions():
    images, labels = torch.zeros(40_000, 1, 1, 1), torch.zeros(40_000)
    random = BlockImages(images, labels).signal_on_top
    assert abs(random.double().mean() - 0.5) < 0.0125  # five standard deviations
    neighbours = (random[1:] == random[:-1]).double().mean()
    assert abs(neighbours - 0.5) < 0.0125
    assert BlockImages(images, labels, position="top").signal_on_top.all()
    assert torch.equal(random, BlockImages(images, labels, seed=0).signal_on_top)
    assert not torch.equal(random, BlockImages(images, labels, seed=1).signal_on_top)
    # Written down when they were fixed.
    assert random[:12].int().tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0]


def test_items_are_those_of_a_dataset():
    data = block_digits().train
    assert len(data) == 1437
    image, label = data[5]
    assert torch.equal(image, data.images[5])
    assert torch.equal(label, data.labels[5])
    assert data[2:4][0].shape == (2, 1, 16, 8)
    batches = list(DataLoader(data, batch_size=700))
    assert torch.equal(torch.cat([images for images, _ in batches]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_masks_hold_no_memory_of_their_own():
    masks = block_digits().train.signal_masks
    assert masks.untyped_storage().nbytes() == 1437 * 16


@pytest.mark.parametrize("null", ["square", "mean"])
def test_block_digits(null, untouched):
    plain, data = digits(), block_digits(null=null, seed=5)
    for blocks, images, labels in (
        (data.train, plain.train_images, plain.train_labels),
        (data.test, plain.test_images, plain.test_labels),
    ):
        signal, rest = blocks_of(blocks)
        assert torch.equal(signal, images)
        assert torch.equal(rest, data.train.null.expand_as(images))
        assert torch.equal(blocks.labels, labels)
    if null == "mean":
        torch.testing.assert_close(data.test.null, plain.train_images.mean(0))
    again = block_digits(null=null, seed=5)
    other = block_digits(null=null, seed=6)
    for ours, same_seed, another in zip(data, again, other, strict=True):
        assert torch.equal(ours.images, same_seed.images)
        assert not torch.equal(ours.signal_on_top, another.signal_on_top)
    agreement = (data.train.signal_on_top[:360] == data.test.signal_on_top).double().mean()
    assert abs(agreement - 0.5) < 0.14
    assert all(split.signal_on_top.all() for split in block_digits(null=null, position="top"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.ones(2, 3, 3)}, ValueError, r"\(N, C, H, W\) and not empty, but have shape \(2, 3, 3\)"),
        ({"images": torch.ones(0, 1, 3, 3), "labels": torch.ones(0)}, ValueError, "not empty"),
        ({"images": torch.ones(2, 1, 3, 3, dtype=torch.uint8)}, TypeError, r"torch.uint8; take images.float\(\) / 255"),
        ({"labels": torch.ones(3)}, ValueError, r"for 2 images, but have shape \(3,\)"),
        ({"labels": torch.tensor(1)}, ValueError, r"for 2 images, but have shape \(\)"),
        ({"null": "circle"}, ValueError, "'square', 'mean' or an image.*'circle'"),
        ({"null": torch.ones(3, 3)}, ValueError, r"\(1, 3, 3\) like the images, but has shape \(3, 3\)"),
        ({"position": "bottom"}, ValueError, "'random' or 'top', but is 'bottom'"),
        ({"seed": -1}, ValueError, r"integer in 0..4294967295, but is -1"),
        ({"seed": 2**32}, ValueError, "integer in 0..4294967295"),
        ({"seed": None}, ValueError, "but is None"),
        ({"seed": 1.0}, ValueError, "but is 1.0"),
    ],
)
def test_bad_block_images(arguments, error, message):
    with pytest.raises(error, match=message):
        BlockImages(**{"images": torch.ones(2, 1, 3, 3), "labels": torch.zeros(2)} | arguments)


# The simplified BlockMNIST


@given(
    n=st.integers(1, 20),
    d=st.integers(1, 6),
    block_dim=st.integers(1, 4),
    eta=st.floats(0, 5),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=60)
def test_equation_2_block_by_block(n, d, block_dim, eta, seed, data):
    signal_blocks = data.draw(st.integers(1, d))
    numbers = st.lists(st.floats(-10, 10), min_size=block_dim, max_size=block_dim)
    u = torch.tensor(data.draw(numbers), dtype=torch.float64)
    # The noise itself, as eta and u change no g_j.
    g = feature_leakage(n, d, block_dim, 1.0, torch.zeros_like(u), signal_blocks=signal_blocks, seed=seed).inputs
    found = feature_leakage(n, d, block_dim, eta, u, signal_blocks=signal_blocks, seed=seed)
    assert found.inputs.shape == found.signal_masks.shape == (n, d * block_dim)
    assert found.inputs.dtype == torch.float64
    assert found.labels.dtype == found.signal_block.dtype == torch.int64
    for k in range(n):
        y = {0: -1, 1: 1}[found.labels[k].item()]
        assert 0 <= found.signal_block[k] < signal_blocks
        for j in range(d):
            block = slice(j * block_dim, (j + 1) * block_dim)
            carries = j == found.signal_block[k]
            expected = eta * g[k, block] + (y * u if carries else 0)
            torch.testing.assert_close(found.inputs[k, block], expected)
            assert (found.signal_masks[k, block] == carries).all()


@pytest.mark.parametrize("block_dim", [1, 2, 5])
def test_noise_is_uniform_in_the_unit_ball(block_dim):
    inputs = feature_leakage(4000, 4, block_dim, 1.0, torch.zeros(block_dim, dtype=torch.float64)).inputs
    g = inputs.reshape(-1, block_dim)
    # Of a uniform point, radius^k is uniform; E g = 0 and E g g' = I / (k + 2).
    share = (g.norm(dim=1) ** block_dim).sort().values
    assert share[-1] <= 1 + 1e-12
    assert (share - torch.linspace(0, 1, len(share), dtype=torch.float64)).abs().max() < 0.02  # Kolmogorov, p = 3e-6
    assert g.mean(0).abs().max() < 0.03
    covariance = g.T @ g / len(g)
    assert (covariance - torch.eye(block_dim, dtype=torch.float64) / (block_dim + 2)).abs().max() < 0.02
    # The direction is uniform: of a point of the sphere, E x_1^4 = 3 / (k (k + 2)).
    fourth = (g / g.norm(dim=1, keepdim=True)).pow(4).mean(0)
    assert (fourth - 3 / (block_dim * (block_dim + 2))).abs().max() < 0.015
    # Blocks are independent.
    blocks = inputs.reshape(4000, 4, block_dim)
    assert (blocks[:, 0] * blocks[:, 1]).mean(0).abs().max() < 0.03


def test_labels_and_blocks_are_uniform(untouched):
    data = feature_leakage(6000, 10, 2, 0.5)
    y = 2 * data.labels - 1
    assert abs(y.double().mean()) < 0.06
    counts = data.signal_block.bincount(minlength=10) / 6000
    assert (counts[:5] - 0.2).abs().max() < 0.03
    assert (counts[5:] == 0).all()
    every = feature_leakage(6000, 10, 2, 0.5, signal_blocks=10).signal_block
    assert (every.bincount(minlength=10) / 6000 - 0.1).abs().max() < 0.02
    assert abs((y * data.signal_block.double()).mean()) < 0.2
    assert same(data, feature_leakage(6000, 10, 2, 0.5))
    assert not torch.equal(data.labels, feature_leakage(6000, 10, 2, 0.5, seed=1).labels)


def test_default_signal_is_a_unit_vector():
    data = feature_leakage(5, 4, 9)
    signals = data.inputs[data.signal_masks].reshape(5, 9) * (2 * data.labels - 1)[:, None]
    torch.testing.assert_close(signals, torch.full((5, 9), 1 / 3))
    assert not data.inputs[~data.signal_masks].any()
    assert not data.inputs[~data.signal_masks].signbit().any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be an integer of at least 1, but is 0"),
        ({"d": 0}, "d must be an integer of at least 1, but is 0"),
        ({"block_dim": 1.0}, "block_dim must be an integer of at least 1, but is 1.0"),
        ({"eta": -0.1}, "eta must be finite and at least 0, but is -0.1"),
        ({"eta": float("nan")}, "eta must be finite and at least 0, but is nan"),
        ({"eta": float("inf")}, "eta must be finite and at least 0, but is inf"),
        ({"d": 5}, "half of d = 5 blocks is no whole number"),
        ({"signal_blocks": 0}, "signal_blocks must be an integer in 1..4.*but is 0"),
        ({"signal_blocks": 5}, "signal_blocks must be an integer in 1..4.*but is 5"),
        ({"u": torch.ones(2)}, r"u must be a finite floating-point vector, \(3,\)"),
        ({"u": torch.ones(3, dtype=torch.int64)}, "u must be a finite floating-point vector"),
        ({"u": torch.full((3,), torch.inf)}, "u must be a finite floating-point vector"),
        ({"seed": -1}, "seed must be an integer in 0"),
    ],
)
def test_bad_feature_leakage(arguments, message):
    with pytest.raises(ValueError, match=message):
        feature_leakage(**{"n": 2, "d": 4, "block_dim": 3} | arguments)


# torchvision's data sets, from small files in their own formats


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
    # Workers that are spawned get it pickled. The loader draws a seed for them.
    draw = torch.Generator().manual_seed(0)
    batches = DataLoader(data, batch_size=11, num_workers=1, multiprocessing_context="spawn", generator=draw)
    assert torch.equal(next(iter(batches))[1], torch.tensor(labels))


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
