"""The sets that are known by name: their files, task, domains and options. Readers are imported on use."""

from dataclasses import dataclass

from normsmith.data.dataset import Task

PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
COMMON = ("train", "test", "size", "channels")


@dataclass(frozen=True)
class Entry:
    """One set: what it is, the files it is read from, any of which is enough to find its folder."""

    name: str
    summary: str
    reader: str  # the module of this room that reads it
    files: tuple[str, ...] = ()  # patterns, in the folder of the set
    task: Task = "classification"
    domains: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # beside those that all have
    common: tuple[str, ...] = COMMON

    @property
    def known_options(self) -> tuple[str, ...]:
        """What may stand behind its name."""
        return (*self.common, *self.options)


_MADE = ("train", "test", "size")
_ENTRIES = (
    Entry("digits", "1,797 handwritten digits of 8x8, part of scikit-learn", "_digits"),
    Entry("mnist", "70,000 handwritten digits of 28x28", "_idx", ("train-images*idx3-ubyte*",), options=("check",)),
    Entry("fashion-mnist", "70,000 pieces of clothing of 28x28", "_idx", ("train-images*idx3-ubyte*",), options=("check",)),
    Entry("usps", "9,298 handwritten digits of 16x16", "_usps", ("zip.train*",)),
    Entry(
        "cifar10",
        "60,000 photographs of 32x32 in 10 classes",
        "_cifar",
        ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar*", "cifar-10-binary.tar*", "*_batch*"),
        options=("check",),
    ),
    Entry(
        "cifar100",
        "60,000 photographs of 32x32 in 100 classes",
        "_cifar",
        ("cifar-100-python*", "cifar-100-binary*", "train", "train.bin"),
        options=("check",),
    ),
    Entry("mnist-m", "MNIST on patches of photographs, 32x32", "_mnist_m", ("mnist_m_train_labels.txt", "mnist_m*")),
    Entry(
        "pacs",
        "9,991 pictures of 227x227 in 7 classes and 4 domains",
        "_pacs",
        (*PACS_DOMAINS, "PACS", "pacs*.tar*", "PACS*.tar*"),
        domains=PACS_DOMAINS,
        options=("domain",),
    ),
    Entry(
        "tiny-imagenet",
        "110,000 photographs of 64x64 in 200 classes",
        "_tiny_imagenet",
        ("wnids.txt", "tiny-imagenet-200", "tiny*imagenet*.tar*"),
    ),
    Entry(
        "scenes",
        "digits of a grey set on one canvas, with the class of each pixel",
        "_scenes",
        task="segmentation",
        options=("of", "objects", "seed"),
        common=_MADE,
    ),
    Entry(
        "boxes",
        "one digit of a grey set somewhere on a canvas, with its class and box",
        "_boxes",
        task="localisation",
        options=("of", "seed"),
        common=_MADE,
    ),
    Entry(
        "moving",
        "clips of a digit of a grey set that moves",
        "_moving",
        task="clips",
        options=("of", "frames", "label", "seed"),
        common=_MADE,
    ),
)
_KNOWN = {entry.name: entry for entry in _ENTRIES}
FOLDER = Entry("folder", "images in a folder for each class, below a folder or in a tar", "_folder")
HUB = Entry("hf", "a set of the Hugging Face hub, by the package datasets", "_hub", options=("config",))


def known() -> dict[str, Entry]:
    """Every set that has a name. Beside these, the path of a folder or tar of images, and hf:NAME, are read too."""
    return dict(_KNOWN)
