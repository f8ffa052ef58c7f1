"""Readers of MNIST, USPS and CIFAR, on small files written here: what is right is read, what is not is one sentence."""

import gzip
import io
import pickle
import struct

import numpy as np
import pytest
import torch
from data.helpers_data import idx, mnist, one_sentence, pixels, place, tar

import normsmith as ns
from normsmith.data._unpickle import loads
from normsmith.errors import InputError, OptionError


@pytest.mark.parametrize(("end", "dot"), [(".gz", "-"), ("", "-"), ("", ".")])
def test_idx(tmp_path, end, dot):
    mnist(tmp_path / "mnist", end=end, dot=dot)
    data = ns.data.load("mnist:check=False", tmp_path)
    assert data.train.inputs.dtype == torch.uint8
    assert np.array_equal(data.train.inputs[:, 0].numpy(), pixels(20, 28, 28, seed=0))
    assert np.array_equal(data.test.inputs[:, 0].numpy(), pixels(10, 28, 28, seed=1))
    assert data.train.targets.tolist() == [*range(10)] * 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte", b"", "start as idx with 2051: got nothing"),
        ("train-images-idx3-ubyte", struct.pack(">4I", 0x801, 1, 28, 28), "start as idx with 2051"),
        ("train-images-idx3-ubyte", struct.pack(">4I", 0x803, 20, 28, 28) + bytes(99), "15680 bytes for 20x28x28: got 99"),
        ("train-images-idx3-ubyte", struct.pack(">4I", 0x803, 3, 28, 28) + bytes(3 * 784), "each of 20 labels: got 3 images"),
        (
            "t10k-labels-idx1-ubyte",
            struct.pack(">2I", 0x801, 10) + bytes(9) + b"\x0b",
            "from 0 to 9 in its test split: got 0 to 11",
        ),
        ("t10k-labels-idx1-ubyte", None, "got neither"),
    ],
)
def test_idx_that_is_broken(tmp_path, name, content, says):
    mnist(tmp_path, end="")
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        ns.data.load("mnist", tmp_path)
    text = one_sentence(error)
    assert says in text
    assert name.partition("-idx")[0] in text or "test split" in says


@pytest.mark.parametrize("damage", ["cut", "flip", "start", "text"])
def test_gz_that_is_broken(tmp_path, damage):
    mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    start = data[:10] + b"\xff" * 20 + data[30:]
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "start": start, "text": b"<html>not found</html>"}[damage])
    with pytest.raises(InputError, match="fetch it again") as error:
        ns.data.load("mnist:check=False", tmp_path)
    assert str(path) in one_sentence(error)


def test_another_file_of_a_published_name(tmp_path):
    mnist(tmp_path)
    with pytest.raises(InputError, match="published md5 f68b3c2dcbeaaa9fbdd348bbdeb94873") as error:
        ns.data.load("mnist", tmp_path)
    assert "check=False" in one_sentence(error)
    with pytest.raises(OptionError, match="check as True or False: got 'maybe'"):
        ns.data.load("mnist:check=maybe", tmp_path)


def usps(folder, lines=12, packed=True, change=lambda text: text):
    values = np.random.default_rng(0).integers(-1000, 1001, (lines, 256)) / 1000
    text = "\n".join(f"{i % 10}.0000 " + " ".join(f"{v:.4f}" for v in row) + " " for i, row in enumerate(values)) + "\n"
    data = change(text).encode()
    for part in ("train", "test"):
        (folder / f"zip.{part}{'.gz' if packed else ''}").write_bytes(gzip.compress(data) if packed else data)
    return values


@pytest.mark.parametrize("packed", [True, False])
def test_usps(tmp_path, packed):
    values = usps(tmp_path, packed=packed)
    data = ns.data.load("usps", tmp_path)
    assert data.train.inputs.shape == (12, 1, 16, 16)
    torch.testing.assert_close(data.train.inputs.view(12, 256).double(), torch.from_numpy((values + 1) / 2), rtol=0, atol=1e-7)
    assert data.train.targets.tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:-30], "257 numbers in each line: got"),
        (lambda text: text.replace("3.0000", "three", 1), "numbers alone"),
        (lambda text: text.replace("3.0000", "13.000", 1), "labels from 0 to 9"),
        (lambda text: text.replace("3.0000 ", "3.0000 nan ", 1).replace("\n4.0000 ", "\n", 1), "257 numbers"),
        (lambda text: text.replace("0.1", "7.1", 1), "values from -1 to 1"),
    ],
)
def test_usps_that_is_broken(tmp_path, change, says):
    usps(tmp_path, change=change)
    with pytest.raises(InputError) as error:
        ns.data.load("usps", tmp_path)
    assert says in one_sentence(error)
    assert "zip.train.gz" in str(error.value)


def test_usps_without_its_test(tmp_path):
    usps(tmp_path)
    (tmp_path / "zip.test.gz").unlink()
    with pytest.raises(InputError, match=r"zip.test.gz or zip.test in .*: got neither"):
        ns.data.load("usps", tmp_path)


TEN = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def cifar10(names=TEN, number=4, protocol=2, **change):
    """Files of CIFAR-10 as pickles, as mapping of name to bytes."""
    files = {}
    for name in names:
        batch = {"data": pixels(number, 3072, seed=TEN.index(name)), "labels": [i % 10 for i in range(number)], **change}
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol)
    return files


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar_pickles(tmp_path, protocol):
    place(tmp_path / "cifar10", cifar10(protocol=protocol))
    data = ns.data.load("cifar10:check=False", tmp_path)
    assert data.train.inputs.shape == (20, 3, 32, 32)
    assert np.array_equal(data.train.inputs.numpy().reshape(20, 3072)[4:8], pixels(4, 3072, seed=1))
    assert np.array_equal(data.test.inputs.numpy().reshape(4, 3072), pixels(4, 3072, seed=5))
    assert data.train.targets.tolist() == [0, 1, 2, 3] * 5
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.notes == ()


def python_2(data, labels):
    """A pickle as Python 2 wrote it: byte strings as str, an array by _reconstruct."""
    out = io.BytesIO()
    out.write(b"\x80\x02}(U\x04data" + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R")
    out.write(b"(K\x01" + b"M" + struct.pack("<H", len(data)) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86")
    out.write(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
    out.write(b"T" + struct.pack("<I", data.size) + data.tobytes() + b"tb")
    out.write(b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.")
    return out.getvalue()


def test_cifar_pickles_of_python_2(tmp_path):
    data = pixels(3, 3072)
    written = python_2(data, [3, 1, 2])
    assert np.array_equal(pickle.loads(written, encoding="latin1")["data"], data)
    found = loads(written, "it")
    assert np.array_equal(found["data"], data)
    assert found["labels"] == [3, 1, 2]


def test_cifar_from_a_tar(tmp_path):
    tar(tmp_path / "cifar-10-python.tar.gz", cifar10(), "w:gz")
    data = ns.data.load("cifar10:check=False", tmp_path)
    assert np.array_equal(data.train.inputs.numpy().reshape(20, 3072)[16:], pixels(4, 3072, seed=4))
    with pytest.raises(InputError, match="published md5"):
        ns.data.load("cifar10", tmp_path)


def test_missing_batches_are_named(tmp_path):
    place(tmp_path, cifar10(("data_batch_2", "data_batch_5", "test_batch")))
    data = ns.data.load("cifar10:check=False", tmp_path)
    assert len(data.train) == 8
    assert data.notes == ("cifar10 without data_batch_1, data_batch_3, data_batch_4: not there",)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(InputError, match=r"expects test_batch in .*: got no such file"):
        ns.data.load("cifar10:check=False", tmp_path)


def test_cifar_binary(tmp_path):
    files = {}
    for seed, name in enumerate(TEN):
        rows = pixels(4, 3073, seed=seed)
        rows[:, 0] = [9, 8, 7, 6]
        files[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
    files["cifar-10-batches-bin/batches.meta.txt"] = "\n".join("abcdefghij").encode() + b"\n\n"
    place(tmp_path, files)
    data = ns.data.load("cifar10", tmp_path)
    assert np.array_equal(data.train.inputs.numpy().reshape(20, 3072)[:4], pixels(4, 3073, seed=0)[:, 1:])
    assert data.train.targets.tolist() == [9, 8, 7, 6] * 5
    assert data.classes == tuple("abcdefghij")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(b"123")
    with pytest.raises(InputError, match=r"data_batch_3.bin is expected .* records of 3073 bytes: got 3 bytes"):
        ns.data.load("cifar10", tmp_path)


def test_cifar100(tmp_path):
    names = [f"class {i}" for i in range(100)]
    files = {"cifar-100-python/meta": pickle.dumps({"fine_label_names": names}, 2)}
    for name in ("train", "test"):
        batch = {"data": pixels(3, 3072), "fine_labels": [99, 0, 50], "coarse_labels": [1, 2, 3]}
        files[f"cifar-100-python/{name}"] = pickle.dumps(batch, 2)
    place(tmp_path / "python", files)
    data = ns.data.load("cifar100:check=False", tmp_path / "python")
    assert data.train.targets.tolist() == [99, 0, 50]
    assert data.classes[99] == "class 99"
    rows = pixels(3, 3074)
    rows[:, :2] = [[1, 99], [2, 0], [3, 50]]
    place(tmp_path / "binary", {f"cifar-100-binary/{name}.bin": rows.tobytes() for name in ("train", "test")})
    data = ns.data.load("cifar100", tmp_path / "binary")
    assert data.train.targets.tolist() == [99, 0, 50]
    assert np.array_equal(data.train.inputs.numpy().reshape(3, 3072), rows[:, 2:])
    assert data.classes[99] == "99"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": [1, 2]}, "4 numbers in 'labels': got 2 labels"),
        ({"labels": ["a", "b", "c", "d"]}, "4 numbers in 'labels'"),
        ({"labels": None}, "got no labels"),
        ({"labels": [1, 2, 3, 10]}, "labels below 10: got 10"),
        ({"labels": [1, 2, 3, -1]}, "labels below 10"),
        ({"data": pixels(4, 100)}, "bytes of shape N x 3072"),
        ({"data": pixels(4, 3072).astype("float32")}, "bytes of shape N x 3072"),
        ({"data": "text"}, "bytes of shape N x 3072"),
    ],
)
def test_cifar_that_is_broken(tmp_path, change, says):
    place(tmp_path, {**cifar10(), **cifar10(("data_batch_4",), **change)})
    with pytest.raises(InputError) as error:
        ns.data.load("cifar10:check=False", tmp_path)
    text = one_sentence(error)
    assert says in text
    assert "data_batch_4" in text


@pytest.mark.parametrize("keep", [0, 1, 10, 5000, -1])
def test_pickles_that_are_cut(tmp_path, keep):
    files = cifar10()
    files["cifar-10-batches-py/data_batch_2"] = files["cifar-10-batches-py/data_batch_2"][:keep]
    place(tmp_path, files)
    with pytest.raises(InputError, match="data_batch_2 is expected to be a whole pickle") as error:
        ns.data.load("cifar10:check=False", tmp_path)
    one_sentence(error)


def test_a_header_that_promises_much_costs_nothing(tmp_path):
    mnist(tmp_path, end="")
    idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, dtype=np.uint8))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 2**32 - 1, 2**16, 2**14) + bytes(10))
    with pytest.raises(InputError, match="got 10"):
        ns.data.load("mnist", tmp_path)
