"""Checkpoints as they are found: files without code in them, inside containers, with the prefixes of wrappers."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normsmith.errors import DependencyError, InputError

_CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")
_INSTANCE, _BATCH = "IN", "BN"
_PREFIX, _COMPILED = "module.", "_orig_mod"


def read_state(state: Mapping[str, Any] | str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of a file that holds one, by the names they have without wrappers."""
    found = state if isinstance(state, Mapping) else _file(Path(state))
    while not any(isinstance(value, Tensor) for value in found.values()):
        inner = next((found[key] for key in _CONTAINERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            raise InputError(
                f"load_bridged expects a state dict: got {', '.join(map(repr, list(found)[:4])) or 'nothing'} and no tensors; pass "
                "the mapping of names to tensors"
            )
        found = inner
    return _joined(_unwrapped({key: value for key, value in found.items() if isinstance(value, Tensor)}))


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DataParallel and torch.compile put before the names, or, of a compiled part, inside them."""
    state = {".".join(part for part in key.split(".") if part != _COMPILED): value for key, value in state.items()}
    while state and all(key.startswith(_PREFIX) for key in state):
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    return state


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the two halves of each layer of the authors of IBN-Net as one: weight and bias of all channels, statistics of the rest."""
    for key in [key for key in state if key.endswith(f"{_INSTANCE}.weight")]:
        name = key.removesuffix(f"{_INSTANCE}.weight")
        instance, batch = f"{name}{_INSTANCE}.", f"{name}{_BATCH}."
        if not all(f"{half}{tensor}" in state for half in (instance, batch) for tensor in ("weight", "bias")):
            continue  # an instance norm of that name, as in IBN-b
        for tensor in [key.removeprefix(batch) for key in state if key.startswith(batch)]:
            values = [state.pop(half + tensor) for half in (instance, batch) if half + tensor in state]
            state[name + tensor] = torch.cat(values) if len(values) > 1 else values[0]
    return state


def _file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"load_bridged expects a state dict or the path of a file: got {str(path)!r}, which is no file")
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError  # noqa: PLC0415  (optional)
            from safetensors.torch import load_file  # noqa: PLC0415
        except ImportError:
            raise DependencyError(f"load_bridged expects safetensors to read {path.name!r}: pip install safetensors") from None
        try:
            tensors: Mapping[str, Any] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"load_bridged expects a safetensors file: got {path.name!r}, which is not ({error})") from None
        return tensors
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"load_bridged expects a file of tensors without code: got {path.name!r} ({reason}); save model.state_dict() again, "
            "with torch.save or as safetensors"
        ) from None
    if not isinstance(found, Mapping):
        raise InputError(f"load_bridged expects a file with a state dict: got {path.name!r} with a {type(found).__name__}")
    return found
