"""The options that all methods with running statistics have in common, typed once: a method takes them as `**running: Unpack[Running]`.

Its signature shows them one by one all the same.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args, is_typeddict

import torch
import torch.distributed as dist

from normsmith.errors import OptionError
from normsmith.methods._base import one_of


class Basic(TypedDict, total=False):
    """Options of every method with running statistics; `RunningNormalizer` says what they mean."""

    frozen: bool
    accumulate: int
    nonfinite: Literal["update", "skip"]
    on_single: Literal["error", "running", "batch"]
    process_group: dist.ProcessGroup | None
    act: str | None
    device: torch.device | str | None
    dtype: torch.dtype | None


class Common(Basic, total=False):
    """For methods with their own defaults of momentum, affine and track_running_stats."""

    eps: float


class Policies(Common, total=False):
    """For methods with their own defaults of affine and track_running_stats."""

    momentum: float | None


class Statistics(Common, total=False):
    """For methods with their own default of momentum."""

    affine: bool
    track_running_stats: bool


class WithoutEps(Basic, total=False):
    """For methods with their own default of eps, or without one."""

    momentum: float | None
    affine: bool
    track_running_stats: bool


class Running(Policies, Statistics, total=False):
    """All of them."""


def refuse_eps(name: str, options: Mapping[str, Any]) -> None:
    """Raise for an eps that a method which divides by nothing is given."""
    if "eps" in options:
        raise OptionError(f"{name} expects no eps, as it divides by nothing: got eps={options['eps']!r}; leave it out")


def check_running(
    name: str,
    momentum: float | None,
    track_running_stats: bool,
    frozen: bool,
    accumulate: int,
    nonfinite: str,
    on_single: str,
) -> None:
    """Raise for values that cannot work."""
    if momentum is not None and not 0 <= momentum <= 1:
        raise OptionError(
            f"{name} expects momentum, the weight of the newest batch, from 0 to 1, or None for the plain average: got "
            f"{momentum!r}"
        )
    if type(accumulate) is not int or accumulate < 1:
        raise OptionError(f"{name} expects accumulate, a number of micro-batches, as a positive integer: got {accumulate!r}")
    one_of(name, "nonfinite", nonfinite, ("update", "skip"))
    one_of(name, "on_single", on_single, ("error", "running", "batch"))
    if frozen and not track_running_stats:
        raise OptionError(f"{name} expects running statistics to freeze: got track_running_stats=False; leave it out")


def write_out_signature(cls: type[Any], base: type[Any]) -> None:
    """Give a class whose constructor passes options on to `base` a signature that names them, those that it is typed to take."""
    own = inspect.signature(cls.__init__)
    if not any(p.kind is p.VAR_KEYWORD for p in own.parameters.values()):
        cls.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # not that of the class it inherits from
        return
    common = {k: p for k, p in inspect.signature(base.__init__).parameters.items() if k not in ("self", "num_features")}
    typed = typed_options(own)
    if typed:  # a subclass of a user's may pass on whatever it is given
        common = {k: p for k, p in common.items() if k in own.parameters or k in typed}
    special = [p for k, p in own.parameters.items() if k != "self" and k not in common and p.kind is not p.VAR_KEYWORD]
    cls.__signature__ = own.replace(parameters=[*special, *(own.parameters.get(k, p) for k, p in common.items())])


def typed_options(signature: inspect.Signature) -> dict[str, Any]:
    """What a constructor takes as `**options: Unpack[...]`, with its types; nothing if it does not say."""
    written = [get_args(p.annotation)[:1] for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    return {
        key: found for (kind,) in filter(None, written) if is_typeddict(kind) for key, found in kind.__annotations__.items()
    }
