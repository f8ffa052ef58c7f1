"""The files of a set, in a folder or in a tar, read by name; nothing is ever unpacked to disk."""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from normsmith.errors import InputError, OptionError

ENVIRONMENT = "NORMSMITH_DATA"
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Files:
    """The files below a folder, or in a tar, by their names from there."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.is_tar = where.is_file()
        if self.is_tar:
            with self._tar() as tar:
                self.names = sorted({member.name.removeprefix("./") for member in self._members(tar)})
        else:
            self.names = sorted(p.relative_to(where).as_posix() for p in where.rglob("*") if p.is_file())

    def ending(self, *ends: str) -> list[str]:
        """The names whose last parts are one of these: "val/words.txt"."""
        return [name for name in self.names if any(f"/{name}".endswith(f"/{end}") for end in ends)]

    def path(self, name: str) -> str:
        """How a message calls a file."""
        return f"{name!r} in {self.where}" if self.is_tar else str(self.where / name)

    def one(self, name: str) -> bytes:
        """The content of one file."""
        return dict(self.read([name]))[name]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The names with their contents, in the order in which they lie, which for a tar is the fast one.

        A tar may have a name twice, as after an update: then the last counts.
        """
        wanted = set(names)
        if not self.is_tar:
            yield from ((name, content(self.where / name)) for name in self.names if name in wanted)
            return
        with self._tar() as tar:
            for member in self._members(tar):
                name = member.name.removeprefix("./")
                if name in wanted:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield name, file.read()

    def _members(self, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        return (member for member in tar if member.isfile())

    def _tar(self) -> "_Opened":
        return _Opened(self.where)


class _Opened:
    """A tar that is open; what is wrong with it is one sentence with its name."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __enter__(self) -> tarfile.TarFile:
        try:
            self.tar = tarfile.open(self.where)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise _broken(self.where, "a tar", error) from error
        return self.tar

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        self.tar.close()
        if isinstance(error, tarfile.TarError | OSError | EOFError | zlib.error):
            raise _broken(self.where, "a tar", error) from error


def content(path: Path, known: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz; `known` are the md5 sums of some names."""
    try:
        data = path.read_bytes()
        check_sum(data, path.name, str(path), known or {})
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, "a file that can be read", error) from error


def check_sum(data: bytes, name: str, where: str, known: Mapping[str, str]) -> None:
    """Raise if the file of this name is known by its md5, and is another."""
    got = hashlib.md5(data, usedforsecurity=False).hexdigest() if name in known else ""
    if got != known.get(name, ""):
        raise InputError(
            f"{where} is expected to have the published md5 {known[name]}: got {got}; fetch it again, or add check=False if it is yours"
        )


def _broken(path: Path, what: str, error: BaseException) -> InputError:
    got = str(error).partition("\n")[0].removesuffix(":") or type(error).__name__
    return InputError(f"{path} is expected to be {what}: got {got}; fetch it again")


def folder_of(name: str, root: str | os.PathLike[str] | None, signs: Iterable[str]) -> Path:
    """The first of root/name and root that holds one of the signs of a set; or the root itself, where it is a file."""
    signs = tuple(signs)
    given = os.environ.get(ENVIRONMENT) if root is None else os.fspath(root)
    if not given:
        raise OptionError(f"{name} expects the folder of its files: got none; give root=, --root, or set {ENVIRONMENT}")
    base = Path(given).expanduser()
    if base.is_file():
        return base
    if not base.is_dir():
        raise InputError(f"{name} expects a root that is there: got {base}; give root=, --root, or set {ENVIRONMENT}")
    for folder in (base / name, base):
        if any(next(folder.glob(sign), None) is not None for sign in signs):
            return folder
    raise InputError(
        f"{name} expects {' or '.join(signs)} in {base / name} or {base}: got neither; docs/data.md has its layout"
    )


def files_of(name: str, root: str | os.PathLike[str] | None, signs: Iterable[str]) -> Files:
    """The files of a set that lies as a tar or as a folder."""
    signs = tuple(signs)
    folder = folder_of(name, root, signs)
    if folder.is_file():
        return Files(folder)
    found = sorted(path for sign in signs for path in folder.glob(sign))
    unpacked = [path for path in found if path.is_dir() or not is_tar(path)]
    return Files(folder if unpacked else found[0])


def is_tar(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a tar."""
    return os.fspath(path).endswith(_TARS)


def parts(name: str) -> tuple[str, ...]:
    """The parts of a name in a set."""
    return PurePosixPath(name).parts
