"""Readers of image files, in folders and tars: MNIST-M, PACS, Tiny ImageNet, any folder of classes."""

import numpy as np
import pytest
from data.helpers_data import image, one_sentence, pixels, place, tar
from PIL import Image

import normsmith as ns
from normsmith.data._files import Files
from normsmith.data._images import Listed, divided
from normsmith.errors import InputError, OptionError


def mnist_m(prefix="mnist_m/"):
    files = {}
    for seed, part in enumerate(("train", "test")):
        lines = []
        for i in range(12):
            files[f"{prefix}mnist_m_{part}/{11 - i:08}.png"] = image(pixels(32, 32, 3, seed=100 * seed + i))
            lines.append(f"{11 - i:08}.png {i % 10}")
        files[f"{prefix}mnist_m_{part}_labels.txt"] = ("\n".join(lines) + "\n").encode()
    return files


@pytest.mark.parametrize("form", ["tar", "packed", "folder", "inside"])
def test_mnist_m(tmp_path, form):
    if form in {"tar", "packed"}:
        tar(
            tmp_path / "mnist-m" / ("mnist_m.tar" if form == "tar" else "mnist_m.tar.gz"),
            mnist_m(),
            "w" if form == "tar" else "w:gz",
        )
    else:
        place(tmp_path, mnist_m("mnist-m/mnist_m/" if form == "folder" else ""))
    data = ns.data.load("mnist-m", tmp_path)
    assert data.train.inputs.shape == (12, 3, 32, 32)
    for i in range(12):
        assert np.array_equal(data.train.inputs[i].permute(1, 2, 0).numpy(), pixels(32, 32, 3, seed=i))
        assert np.array_equal(data.test.inputs[i].permute(1, 2, 0).numpy(), pixels(32, 32, 3, seed=100 + i))
    assert data.train.targets.tolist() == [*range(10), 0, 1]
    assert data.train.names[0].endswith("mnist_m_train/00000011.png")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "mnist_m_train_labels.txt",
            b"00000001.png three\n",
            "a name and a digit in each line: got '00000001.png three' in line 1",
        ),
        ("mnist_m_train_labels.txt", b"gone.png 3\n", "mnist_m_train/gone.png, which its list names"),
        ("mnist_m_train_labels.txt", b"", "images to train with"),
        (
            "mnist_m_train/00000003.png",
            b"no image",
            "mnist_m_train/00000003.png is expected to be an image: got nothing that pillow knows",
        ),
        ("mnist_m_train/00000003.png", image(pixels(32, 32, 3))[:200], "is expected to be an image"),
        ("mnist_m_train/00000003.png", image(pixels(30, 32, 3)), "images of one size"),
        ("mnist_m_test_labels.txt", None, "expects mnist_m_test_labels.txt"),
    ],
)
def test_mnist_m_that_is_broken(tmp_path, name, content, says):
    place(tmp_path, mnist_m("") if content is None else {**mnist_m(""), name: content})
    if content is None:
        (tmp_path / name).unlink()
    with pytest.raises(InputError) as error:
        ns.data.load("mnist-m", tmp_path)
    assert says in one_sentence(error)


def test_tars_that_are_broken(tmp_path):
    path = tar(tmp_path / "mnist_m.tar", mnist_m())
    whole = path.read_bytes()
    for damaged in (b"no tar at all", whole[: len(whole) // 2 + 100]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"mnist_m.tar") as error:
            ns.data.load("mnist-m", tmp_path)
        one_sentence(error)


def test_only_what_is_wanted_is_decoded(tmp_path):
    files = mnist_m("")
    files["mnist_m_train/00000001.png"] = b"broken, but not wanted"
    place(tmp_path, files)
    assert len(ns.data.load("mnist-m:train=2,test=2", tmp_path).train) == 2


CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def pacs(domains=("art_painting", "cartoon", "photo", "sketch"), number=6):
    files = {}
    for d, domain in enumerate(domains):
        for c, name in enumerate(CLASSES):
            for i in range(number):
                kind = "PNG" if domain == "sketch" else "JPEG"
                files[f"PACS/{domain}/{name}/pic_{i}.{kind.lower()}"] = image(
                    np.full((9, 9, 3), 30 * d + 10 * c + i, np.uint8), kind
                )
    return files


def test_pacs(tmp_path):
    tar(tmp_path / "pacs" / "pacs_part.tar", pacs())
    data = ns.data.load("pacs", tmp_path)
    assert data.classes == CLASSES
    assert (len(data.train), len(data.test)) == (4 * 7 * 5, 4 * 7)
    assert all(name.endswith(("pic_4.jpeg", "pic_4.png")) for name in data.test.names)
    sketch = ns.data.load("pacs:domain=sketch,size=4", tmp_path)
    assert (len(sketch.train), len(sketch.test), sketch.size) == (35, 7, (4, 4))
    for name, values, label in zip(sketch.train.names, sketch.train.inputs, sketch.train.targets.tolist(), strict=True):
        assert name.split("/")[1:3] == ["sketch", CLASSES[label]]
        assert values.unique().tolist() == [90 + 10 * label + int(name[-5])]
    source, target = ns.data.load_pair("pacs:domain=photo", "pacs:domain=cartoon", tmp_path)
    assert not set(source.train.names) & set(target.train.names)


def test_pacs_by_its_folders(tmp_path):
    place(tmp_path, {name.removeprefix("PACS/"): data for name, data in pacs().items()})
    assert len(ns.data.load("pacs:domain=photo", tmp_path).train) == 35


def test_pacs_that_is_broken(tmp_path):
    tar(tmp_path / "pacs.tar", pacs(("photo", "sketch")))
    assert len(ns.data.load("pacs:domain=photo", tmp_path).test) == 7
    with pytest.raises(InputError, match="expects art_painting/dog and the other classes") as error:
        ns.data.load("pacs", tmp_path)
    one_sentence(error)
    with pytest.raises(OptionError, match="'sketch': got 'drawing'"):
        ns.data.load("pacs:domain=drawing", tmp_path)


def tiny():
    wnids = ("n03", "n01", "n02")
    files = {"wnids.txt": "\n".join(wnids).encode(), "words.txt": b"n01\tgoldfish, Carassius auratus\nn02\ttabby\n"}
    lines = []
    for c, wnid in enumerate(wnids):
        for i in range(3):
            grey = c == i == 0
            pixel = np.full((64, 64) if grey else (64, 64, 3), 40 * c + i, np.uint8)
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = image(pixel, "JPEG")
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        files[f"val/images/val_{c}.JPEG"] = image(np.full((64, 64, 3), 40 * c, np.uint8), "JPEG")
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t62\t63")
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    return {f"tiny-imagenet-200/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_tiny_imagenet(tmp_path, form):
    tar(tmp_path / "tiny-imagenet-200.tar", tiny()) if form == "tar" else place(tmp_path, tiny())
    data = ns.data.load("tiny-imagenet", tmp_path)
    assert data.classes == ("n03", "goldfish", "tabby")
    assert data.train.inputs.shape == (9, 3, 64, 64)
    assert data.test.targets.tolist() == [0, 1, 2]
    for values, label in zip(data.train.inputs, data.train.targets.tolist(), strict=True):
        assert abs(float(values.float().mean()) - 40 * label) < 4


def test_a_part_of_tiny_imagenet(tmp_path):
    files = {name: data for name, data in tiny().items() if "/train/n01/" not in name}
    place(tmp_path, files)
    data = ns.data.load("tiny-imagenet", tmp_path)
    assert data.classes == ("n03", "tabby")
    assert data.test.targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("wnids.txt", "expects wnids.txt"),
        ("val/val_annotations.txt", "expects tiny-imagenet-200/val/val_annotations.txt"),
        ("val/images/val_1.JPEG", "val/images/val_1.JPEG, which its annotations name"),
        ("train/", "got none of the classes in wnids.txt"),
    ],
)
def test_tiny_imagenet_that_is_broken(tmp_path, gone, says):
    place(tmp_path, {name: data for name, data in tiny().items() if not name.startswith(f"tiny-imagenet-200/{gone}")})
    with pytest.raises(InputError) as error:
        ns.data.load("tiny-imagenet", tmp_path)
    assert says in one_sentence(error)


def classes_of_images(number=10, names=("cat", "ant"), prefix=""):
    return {
        f"{prefix}{name}/{i:02}.png": image(np.full((6, 6), 100 * c + i, np.uint8))
        for c, name in enumerate(names)
        for i in range(number)
    }


@pytest.mark.parametrize("around", ["", "all/of/it/"])
@pytest.mark.parametrize("form", ["tar", "tar.gz", "folder"])
def test_any_folder(tmp_path, form, around):
    files = {**classes_of_images(prefix=around), "notes.txt": b"", f"{around}ant/._00.png": b"", f"{around}ant/notes": b""}
    if form == "folder":
        where = place(tmp_path / "set", files)
    else:
        where = tar(tmp_path / f"set.{form}", files, "w:gz" if form == "tar.gz" else "w")
    data = ns.data.load(str(where))
    assert data.classes == ("ant", "cat")
    assert data.train.inputs.shape == (16, 1, 6, 6)
    assert [int(x[0, 0, 0]) for x in data.test.inputs] == [104, 109, 4, 9]
    assert data.test.targets.tolist() == [0, 0, 1, 1]
    again = ns.data.load(f"{where}:size=3,channels=rgb,train=4")
    assert again.train.inputs.shape == (4, 3, 3, 3)


@pytest.mark.parametrize(("second", "third"), [("test", "val"), ("val", None), (None, None)])
def test_a_folder_with_splits(tmp_path, second, third):
    files = classes_of_images(10, prefix="train/")
    for name, number in ((second, 3), (third, 2)):
        files.update(classes_of_images(number, prefix=f"{name}/") if name else {})
    data = ns.data.load(str(place(tmp_path / "set", files)))
    assert (len(data.train), len(data.test)) == ((20, 6) if second else (16, 4))
    assert data.notes == ((f"{tmp_path / 'set'} without {third}: not used",) if third else ())


def test_images_of_all_sorts(tmp_path):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    deep, palette = tmp_path / "deep.png", tmp_path / "palette.png"
    Image.fromarray((np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)).save(deep)
    Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).convert("P").save(palette)
    files = {
        "train/a/wide.png": image(wide),
        "train/a/deep.png": deep.read_bytes(),
        "train/b/wide.gif": image(wide, "GIF"),
        "train/b/red.png": palette.read_bytes(),
        "test/b/transparent.png": image(np.full((4, 4, 4), 9, np.uint8)),
    }
    data = ns.data.load(f"{place(tmp_path / 'set', files)}:size=4")
    found = dict(zip(data.train.names, data.train.inputs, strict=True))
    assert found["train/a/wide.png"].unique().tolist() == [200]
    assert found["train/b/wide.gif"].unique().tolist() == [200]
    assert found["train/a/deep.png"][0].flatten().tolist() == [17 * i for i in range(16)]
    assert found["train/b/red.png"][:, 0, 0].tolist() == [255, 0, 0]
    assert data.test.inputs.unique().tolist() == [9]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "two classes or more: got none"),
        (classes_of_images(names=("cat",)), "two classes or more: got cat alone"),
        ({"cat/1.png": image(pixels(4, 4)), "top.png": b""}, "got cat alone"),
        ({**classes_of_images(prefix="train/"), "test/emu/1.png": image(pixels(6, 6))}, "got 'emu', which train has not"),
        (
            {**classes_of_images(), "cat/03.png": image(pixels(5, 6))},
            "got 6x6 in 'ant/00.png' and 5x6 in 'cat/03.png'; add size=",
        ),
        ({**classes_of_images(), "cat/03.png": b"junk"}, "is expected to be an image"),
        (classes_of_images(number=3), "images to test with"),
    ],
)
def test_a_folder_that_is_broken(tmp_path, files, says):
    where = place(tmp_path / "set", files)
    where.mkdir(exist_ok=True)
    with pytest.raises(InputError) as error:
        ns.data.load(str(where))
    assert says in one_sentence(error)


def test_a_set_is_divided_within_each_class():
    listed = Listed(tuple("abcdefghijklmno"), (0,) * 5 + (1,) * 10)
    train, test = divided(listed)
    assert test.names == ("e", "j", "o")
    assert sorted(train.names + test.names) == list(listed.names)


def test_of_a_name_that_a_tar_has_twice_the_last_counts(tmp_path):
    path = tar(tmp_path / "set.tar", classes_of_images())
    tar(path, {"cat/00.png": image(np.full((6, 6), 77, np.uint8))}, "a")
    data = ns.data.load(str(path))
    assert len(data.train) == 16
    assert len(Files(path).names) == 20
    assert 77 in data.train.inputs[data.train.targets == 1]
    assert 0 not in data.train.inputs[data.train.targets == 1]


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path):
    import tarfile

    path = tar(tmp_path / "set.tar", classes_of_images())
    with tarfile.open(path, "a") as file:
        entry = tarfile.TarInfo("cat/link.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(entry)
    assert len(ns.data.load(str(path)).train) == 16
