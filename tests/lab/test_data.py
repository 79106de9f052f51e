"""The real files, where $DISTILLNB_DATA has them, and Keras's cache."""

import functools
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from distillnb.lab import data

ROOT = Path(os.environ.get("DISTILLNB_DATA") or "nowhere")


def needs(name):
    return pytest.mark.skipif(
        not (ROOT / name).is_dir(), reason=f"no folder {name} in $DISTILLNB_DATA"
    )


SETS = {"fashion-mnist": data.fashion_mnist, "mnist": data.mnist, "cifar10": data.cifar10}
SHAPES = {"fashion-mnist": (28, 28, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
EACH = [pytest.param(name, marks=needs(name)) for name in SETS]


official = functools.cache(data.official)  # each real set is read and checked once for all tests


@pytest.fixture
def read_once(monkeypatch):
    monkeypatch.setattr(data, "official", official)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", EACH)
def test_real_splits(name, read_once):
    x, y, x_test, y_test = official(name)
    sizes = {"train": 100, "validation": 50, "teacher": 200, "test": 80}
    splits, other, same = (SETS[name](seed=seed, **sizes) for seed in (0, 1, 0))
    for split_name, split in splits._asdict().items():
        assert split.x.shape == (sizes[split_name], *SHAPES[name]) and split.x.dtype == np.float32
        assert 0 <= split.x.min() < split.x.max() <= 1
        assert split.y.dtype == np.int32 and split.ids.dtype == np.int64
        images, labels, rows = (
            (x_test, y_test, split.ids - 1_000_000) if split_name == "test" else (x, y, split.ids)
        )
        np.testing.assert_allclose(split.x * 255, images[rows], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(split.y, labels[rows])
    np.testing.assert_array_equal(splits.teacher.ids, np.arange(len(x) - 200, len(x)))
    np.testing.assert_array_equal(splits.teacher.ids, other.teacher.ids)
    np.testing.assert_array_equal(splits.train.ids, same.train.ids)
    assert set(splits.train.ids) != set(other.train.ids)
    np.testing.assert_array_equal(np.bincount(y_test) > 800, True)


@pytest.mark.parametrize("name", EACH)
def test_default_sizes_and_their_limits(name, read_once):
    splits = SETS[name]()
    assert [len(split.y) for split in splits] == [2_000, 1_000, 10_000, 20_000]
    alone = SETS[name](teacher=0, test=100)
    assert alone.teacher is alone.train
    with pytest.raises(ValueError, match="ask for fewer"):
        SETS[name](train=40_000)


@needs("cifar10")
def test_cifar10_is_decoded_to_the_original_pixels():
    wanted = [
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ]
    assert [sha256(array) for array in official("cifar10")] == wanted


def original_batch(title, x, y, names):
    """The bytes of a file of the original archive, a Python 2 pickle (as data/README.md describes
    it).
    """

    def listing(items):
        return b"e(".join(b"".join(items[i : i + 1000]) for i in range(0, len(items), 1000))

    def memo(k):
        return b"q" + bytes([k]) if k < 256 else b"r" + k.to_bytes(4, "little")

    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U"
        + bytes([len(title)])
        + title
        + b"q\x03U\x06labelsq\x04]q\x05("
        + listing([b"K" + bytes([v]) for v in y])
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        + b"K\x00\x85U\x01b\x87Rq\t"
        + b"(K\x01M\x10'M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + x.size.to_bytes(4, "little")
        + x.transpose(0, 3, 1, 2).tobytes()
        + b"tbU\tfilenamesq\x0c]q\r("
        + listing([b"U" + bytes([len(s)]) + s + memo(14 + i) for i, s in enumerate(names)])
        + b"eu."
    )


@needs("cifar10")
def test_an_original_batch_is_read_without_unpickling():
    _, _, x, y = official("cifar10")
    with np.load(ROOT / "cifar10" / "cifar10-test.npz", allow_pickle=False) as archive:
        raw = original_batch(b"testing batch 1 of 1", x, y, archive["filenames"].tolist())
    assert (
        hashlib.md5(raw).hexdigest() == "40351d587109b95175f43aff81a1287e"
    )  # as published: the very file
    images, labels = data._read_batch(raw)
    np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(labels, y)


@needs("teacher-logits")
@pytest.mark.parametrize(
    "teacher, name, accuracy",
    [
        pytest.param("resnet_fmnist", "fashion-mnist", 0.9987, marks=needs("fashion-mnist")),
        pytest.param("resnet", "cifar10", 0.9995, marks=needs("cifar10")),
        pytest.param("cnn", "cifar10", 0.7975, marks=needs("cifar10")),
    ],
)
def test_published_logits_belong_to_the_ids(teacher, name, accuracy, read_once):
    logits, (_, y, _, _) = data.teacher_logits(teacher), official(name)
    assert logits.shape == (len(y), 10) and logits.dtype == np.float32
    np.testing.assert_allclose(np.mean(logits.argmax(1) == y), accuracy, rtol=0, atol=1e-4)
    split = SETS[name](seed=5, train=1000, validation=10, test=10, teacher=0).train
    assert np.mean(logits[split.ids].argmax(1) == split.y) > accuracy - 0.05


@needs("fashion-mnist")
def test_one_altered_bit_in_a_real_file(tmp_path, monkeypatch):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for file in data._FILES["fashion-mnist"]:
        (folder / file).symlink_to(ROOT / "fashion-mnist" / file)
    victim = folder / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(victim.read_bytes())
    content[3000] ^= 1
    victim.unlink()
    victim.write_bytes(content)
    monkeypatch.setenv("DISTILLNB_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="truncated or altered"):
        data.fashion_mnist()
    assert victim.read_bytes() == content
    victim.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels.* is missing"):
        data.fashion_mnist()


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("DISTILLNB_DATA", raising=False)
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


def fake(monkeypatch, name, file, content):
    subfolder, url, _ = data._KERAS[name]
    monkeypatch.setitem(
        data._KERAS, name, (subfolder, url, {file: hashlib.sha256(content).hexdigest()})
    )


def test_mnist_as_keras_keeps_it(keras_home, monkeypatch):
    rng, packed = np.random.default_rng(0), io.BytesIO()
    arrays = {
        "x_train": rng.integers(0, 256, (60, 28, 28), np.uint8),
        "y_train": np.arange(60, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 10,
    }
    np.savez(packed, **arrays)
    fake(monkeypatch, "mnist", "mnist.npz", packed.getvalue())
    (keras_home / "mnist.npz").write_bytes(packed.getvalue())
    for got, wanted in zip(data.official("mnist"), arrays.values(), strict=True):
        np.testing.assert_array_equal(np.squeeze(got), wanted)
    (keras_home / "mnist.npz").write_bytes(packed.getvalue()[:-1])
    with pytest.raises(ValueError, match="truncated or altered"):
        data.mnist()
    assert (keras_home / "mnist.npz").exists()  # Keras would have deleted it


def test_cifar10_as_keras_keeps_it(keras_home, monkeypatch):
    rng, packed = np.random.default_rng(0), io.BytesIO()
    x, y = rng.integers(0, 256, (6, 4, 32, 32, 3), np.uint8), rng.integers(0, 10, (6, 4), np.uint8)
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            raw = original_batch(b"a batch", x[i], y[i], [b"name"] * 4)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    file = next(iter(data._KERAS["cifar10"][2]))
    fake(monkeypatch, "cifar10", file, packed.getvalue())
    (keras_home / file).write_bytes(packed.getvalue())
    for got, wanted in zip(
        data.official("cifar10"),
        (x[:5].reshape(20, 32, 32, 3), y[:5].ravel(), x[5], y[5]),
        strict=True,
    ):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", SETS)
def test_keras_downloads_only_what_is_missing(keras_home, monkeypatch, name):
    keras_utils, asked = pytest.importorskip("keras").utils, []
    subfolder, _, files = data._KERAS[name]
    (keras_home / subfolder).mkdir(exist_ok=True)
    missing = list(files)[-1]
    for file in list(files)[:-1]:
        (keras_home / subfolder / file).write_bytes(b"somebody's only copy")

    def get_file(fname, origin, file_hash, cache_subdir):
        asked.append(fname)
        assert origin.startswith("https://") and len(file_hash) == 64
        return str(keras_home.parent / cache_subdir / fname)

    monkeypatch.setattr(keras_utils, "get_file", get_file)
    assert data.find(name) == keras_home / subfolder and asked == [missing]

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(keras_utils, "get_file", no_network)
    with pytest.raises(FileNotFoundError, match="no network.*set DISTILLNB_DATA"):
        SETS[name]()
    assert all((keras_home / subfolder / file).exists() for file in list(files)[:-1])


def test_light_import():
    import subprocess
    import sys

    check = (
        "import sys, distillnb.lab.data; sys.exit(bool({*sys.modules} & {'tensorflow', 'sklearn'}))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
