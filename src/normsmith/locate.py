"""`load_model` and `load_loader`: a model, and batches, from what a user can write on a command line."""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from normsmith.errors import DependencyError, InputError, ModelError, OptionError

_FORMS = "package.module:factory, path/to/file.py:factory, hf:ID, timm:NAME or torchvision:NAME"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load_model(spec: str) -> nn.Module:
    """The model that `spec` names.

    - `"package.module:factory"` or `"path/to/file.py:factory"`: what the factory returns, called without arguments, or with literals as in
      `"nets.py:resnet(num_classes=10)"`; a module that is there already is taken as it is. The code of the file is run.
    - `"hf:ID"`: the model of that configuration on the Hugging Face hub or in a folder; with its weights if they lie in the folder or in
      the local cache, else with random ones. Only the configuration is ever downloaded.
    - `"timm:NAME"`, `"torchvision:NAME"`: with random weights; literals as above.
    """
    source, colon, rest = _cut(spec)
    if not colon or not source or not rest:
        raise OptionError(f"a model is expected as {_FORMS}: got {spec!r}")
    if source == "hf":
        return _from_hugging_face(rest)
    name, args, options = _call(rest, spec)
    if source == "timm":
        timm = _package("timm", spec)
        return _made(spec, timm.create_model, name, timm.list_models(), *args, **options)
    if source == "torchvision":
        models = _package("torchvision.models", spec)
        return _made(spec, models.get_model, name, models.list_models(), *args, **options)
    found = _resolve(source, name)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(f"{spec!r} is expected to name a factory: got a {type(found).__name__}")
    with _importable(source):
        return _called(spec, found, *args, **options)


def load_loader(spec: str) -> Iterable[Any]:
    """The batches that `spec` names: `"package.module:factory"` or `"path/to/file.py:factory"`, called as `load_model` calls it."""
    source, colon, rest = _cut(spec)
    if not colon or not source or not rest:
        raise OptionError(f"a loader is expected as package.module:factory or path/to/file.py:factory: got {spec!r}")
    name, args, options = _call(rest, spec)
    found = _resolve(source, name)
    if callable(found):
        try:
            with _importable(source):
                found = found(*args, **options)
        except Exception as error:
            raise InputError(
                f"{spec!r} is expected to give a loader: it raised {type(error).__name__}: {_line(error)}"
            ) from error
    if not isinstance(found, Iterable) and not hasattr(found, "__getitem__"):
        raise InputError(f"{spec!r} is expected to give a loader, which yields batches: got a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def load_factory(spec: str, what: str) -> Callable[..., Any]:
    """The function or class that `spec` names: `"package.module:factory"` or `"path/to/file.py:factory"`. `what` it makes, for messages."""
    source, colon, name = _cut(spec)
    if not colon or not source or not name:
        raise OptionError(f"{what} is expected as package.module:factory or path/to/file.py:factory: got {spec!r}")
    found = _resolve(source, name)
    if not callable(found):
        raise ModelError(f"{spec!r} is expected to name a factory: got a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _resolve(source: str, name: str) -> Any:
    """What a module or file has under a dotted name."""
    with _importable(source):
        found: Any = _module(source)
        for part in name.split("."):
            if not hasattr(found, part):
                raise ModelError(f"{source!r} is expected to have {name!r}: {_nearest(part, vars(found))}")
            found = getattr(found, part)
    return found


def _cut(spec: str) -> tuple[str, str, str]:
    """The parts around the last colon that is not among arguments."""
    head, bracket, arguments = spec.partition("(")
    source, colon, name = head.rpartition(":")
    return source, colon, name + bracket + arguments


def _call(written: str, spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    """A name, and the literals it is called with."""
    if "(" not in written:
        return written, [], {}
    try:
        node = ast.parse(written, mode="eval").body
        if not isinstance(node, ast.Call) or any(k.arg is None for k in node.keywords):
            raise ValueError
        options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        return ast.unparse(node.func), [ast.literal_eval(arg) for arg in node.args], options
    except (SyntaxError, ValueError, TypeError):
        raise OptionError(
            f"a factory is expected with literals as arguments, such as resnet(num_classes=10): got {spec!r}"
        ) from None


def _package(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  (torchvision built for another torch fails in its own ways)
        top = name.partition(".")[0]
        raise DependencyError(
            f"{spec!r} expects {top}: got {type(error).__name__} ({_line(error)}); pip install {top}"
        ) from None


def _made(spec: str, create: Any, name: str, known: Iterable[str], *args: Any, **options: Any) -> nn.Module:
    known = list(known)
    if name.partition(".")[0] not in known:  # timm has name.tag for weights
        raise ModelError(f"{spec!r} expects a name of {spec.partition(':')[0]}: {_nearest(name, known)}")
    return _called(spec, create, name, *args, **options)


def _called(spec: str, factory: Any, *args: Any, **options: Any) -> nn.Module:
    try:
        model = factory(*args, **options)
    except Exception as error:
        raise ModelError(f"{spec!r} is expected to give a model: it raised {type(error).__name__}: {_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec!r} is expected to give a torch.nn.Module: got a {type(model).__name__}")
    return model


@contextlib.contextmanager
def _importable(source: str) -> Iterator[None]:
    """In this block, what lies beside a file, or in the current folder, can be imported, as Python has it for a script there."""
    path = str((Path(source).parent if source.endswith(".py") else Path.cwd()).resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _module(source: str) -> ModuleType:
    try:
        return _file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not (source == error.name or source.startswith(f"{error.name}.")):
            raise ModelError(f"{source!r} is expected to import: it needs {error.name!r}, which is not there") from error
        raise ModelError(
            f"{source!r} is expected to be a module: there is none; run from its folder, or write the path of a file"
        ) from None
    except OSError as error:
        raise ModelError(f"{source!r} is expected to be a file: {error.strerror or _line(error)}") from None
    except Exception as error:
        raise ModelError(f"{source!r} is expected to import: it raised {type(error).__name__}: {_line(error)}") from error


def _file(path: Path) -> ModuleType:
    """The module of a file, run anew."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # pickles and dataclasses look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = before
        raise
    return module


def _from_hugging_face(name: str) -> nn.Module:
    transformers: Any = _package("transformers", f"hf:{name}")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except Exception as error:  # noqa: BLE001  (network, hub and files each fail in their own ways)
        raise ModelError(f"'hf:{name}' is expected to be a folder or a repository with a config.json: {_line(error)}") from None
    architecture = getattr(transformers, next(iter(config.architectures or []), ""), None)
    if not _has_weights(name):
        build = transformers.AutoModel.from_config if architecture is None else architecture
        return _called(f"hf:{name}", build, config)
    build = transformers.AutoModel if architecture is None else architecture
    return _called(f"hf:{name}", build.from_pretrained, name, local_files_only=True)


def _has_weights(name: str) -> bool:
    if Path(name).is_dir():
        return any((Path(name) / file).exists() for file in _WEIGHTS)
    from huggingface_hub import try_to_load_from_cache  # transformers needs it

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in _WEIGHTS)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [k for k in known if not k.startswith("_")], n=3, cutoff=0.5)
    return f"got no such name; did you mean {' or '.join(map(repr, near))}?" if near else "got no such name"


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
