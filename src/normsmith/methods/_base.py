"""What every normalizer shares: the affine parameters, and the checks of options and inputs with their sentences."""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from normsmith.activation import MODULES, SLOPE, Activation
from normsmith.errors import InputError, OptionError
from normsmith.methods._specs import among, written


class Normalizer(nn.Module):
    """A layer over (N, C, *spatial), any number of spatial dimensions from 0 to 3, with an optional affine map per channel.

    A few methods also take a sequence of sizes for `num_features`: then they act on these trailing dimensions, as torch's do.

    With `act` ("relu", "relu6", "leaky_relu" or "leaky_relu:negative_slope=0.2", "silu", "hardswish") the output goes through that
    activation of torch, in the same pass where the layer writes its output itself. Methods that end in one of their own refuse it.
    """

    takes_empty = False  # in training: only where other ranks may have data
    parameter_kinds: ClassVar[dict[str, str]] = {"weight": "affine", "bias": "affine"}  # a method adds its own: `_kinds.KINDS`
    takes_shape: ClassVar[bool] = False  # whether num_features may be a sequence of trailing sizes
    condition_name: ClassVar[str | None] = (
        None  # of the argument, if any, that says under which condition each sample is normalized
    )
    activates: bool = False  # whether the output went through an activation, so that none belongs behind it
    bend: Activation | None = None  # that of `act`
    num_features: int | tuple[int, ...]
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        eps: float | None,
        affine: bool,
        bias: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.num_features = _features(num_features, self.takes_shape, name)
        if eps is not None and not eps > 0:
            raise OptionError(
                f"{name} expects eps above zero, to divide by on a constant channel: got eps={eps!r}; try eps=1e-5"
            )
        if act is not None:
            if self.activates:
                raise OptionError(f"{name} expects no act: got {act!r} for a method that ends in an activation; leave it out")
            self.end_in(_activation(act, name))
        self.eps = eps
        self.affine = affine
        for key, wanted in (("weight", affine), ("bias", affine and bias)):
            empty = nn.Parameter(torch.empty(self.num_features, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(key, empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def keep(self, name: str, buffer: Tensor | None, *, persistent: bool = True) -> None:
        """A buffer, or no slot for one but an attribute that is None: torch.export miscounts buffers behind an empty slot."""
        if buffer is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, buffer, persistent=persistent)

    def check_input(self, x: Tensor) -> None:
        """Raise unless `x` is a floating (N, num_features, *spatial) that, in training, holds at least one element."""
        name = type(self).__name__
        if isinstance(self.num_features, tuple):
            if x.shape[x.dim() - len(self.num_features) :] != self.num_features:
                raise InputError(
                    f"{name} expects an input that ends in the dimensions {self.num_features}: got shape {tuple(x.shape)}; "
                    "for channels in dimension 1 build it with num_features as an integer"
                )
        elif not 2 <= x.dim() <= 5:
            raise InputError(
                f"{name} expects an input of rank 2 to 5, (N, {self.num_features}, *spatial): got shape {tuple(x.shape)}"
                + ("; add the batch dimension with x.unsqueeze(0)" if x.dim() == 1 else "")
            )
        elif x.shape[1] != self.num_features:
            last = x.dim() > 2 and x.shape[-1] == self.num_features
            raise InputError(
                f"{name} expects {self.num_features} channels in dimension 1: got {x.shape[1]} in an input of shape "
                f"{tuple(x.shape)}; "
                + (
                    "move the last dimension there with x.movedim(-1, 1)"
                    if last
                    else f"build the layer with num_features={x.shape[1]}"
                )
            )
        if not x.is_floating_point():
            raise InputError(f"{name} expects a floating-point input: got {x.dtype}; convert it with x.float()")
        own = self.precision()
        if own is not None and own != x.dtype and torch.finfo(own).bits < torch.finfo(x.dtype).bits:
            raise InputError(
                f"{name} expects an input no more precise than its parameters: got {x.dtype} for a layer in {own}; "
                "convert the layer with layer.to(x.dtype), or the input"
            )
        if self.training and x.numel() == 0 and not self.takes_empty:
            raise InputError(
                f"{name} expects at least one element in training: got an empty input of shape {tuple(x.shape)}; "
                "skip empty batches, or call eval() first"
            )

    def check_mask(self, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
        """The elements that count, True where they do, of the rank of `x`; None for all.

        `mask` is (N, *spatial), or the same with a channel dimension of 1 or C; `lengths` (N,) counts the first positions of the last
        dimension.
        """
        if mask is None and lengths is None:
            return None
        name = type(self).__name__
        if isinstance(self.num_features, tuple):
            raise InputError(
                f"{name} expects a mask only with channels in dimension 1: got one for statistics over trailing ones"
            )
        if mask is not None and lengths is not None:
            raise InputError(f"{name} expects either mask or lengths: got both; leave one out")
        if lengths is not None:
            if lengths.shape != x.shape[:1] or x.dim() < 3 or lengths.is_floating_point():
                raise InputError(
                    f"{name} expects lengths as {x.shape[0]} integers for an input (N, C, ..., positions): got "
                    f"{lengths.dtype} of shape {tuple(lengths.shape)} for an input of shape {tuple(x.shape)}"
                )
            mask = torch.arange(x.shape[-1], device=x.device) < lengths.view(-1, *[1] * (x.dim() - 1))
            return mask.expand(x.shape[0], 1, *x.shape[2:])
        assert mask is not None
        whole = mask.unsqueeze(1) if mask.dim() == x.dim() - 1 else mask
        fits = whole.dim() == x.dim() and all(m in (1, s) for m, s in zip(whole.shape[1:], x.shape[1:], strict=True))
        if mask.dtype != torch.bool or not fits or whole.shape[0] != x.shape[0]:
            raise InputError(
                f"{name} expects mask as booleans (N, *spatial), True for elements that count: got {mask.dtype} of shape "
                f"{tuple(mask.shape)} for an input of shape {tuple(x.shape)}"
            )
        return whole.expand(-1, -1, *x.shape[2:])

    def precision(self) -> torch.dtype | None:
        """The type of the parameters, None if there are none."""
        weight = self._parameters.get("weight")  # past nn.Module.__getattr__, in a check at every forward
        return None if weight is None else weight.dtype

    def warn_if_single(
        self, elements: int, statistic: str, cure: str, so: str = "the output is the bias whatever the input"
    ) -> None:
        """Warn where a batch-free statistic covers one element: the output is then the bias, whatever the input."""
        if elements == 1 and not torch.compiler.is_compiling():
            warnings.warn(
                f"{type(self).__name__} expects more than one element per {statistic}: got 1, so {so}; {cure}",
                stacklevel=3,
            )

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        """A new layer of torch.nn with the same options and state-dict keys, or None if torch has no such layer."""
        return None

    @classmethod
    def without_meaning(cls, options: dict[str, Any]) -> set[str]:
        """The options of the constructor that mean nothing beside these; it refuses them."""
        return set()

    def example_inputs(self, x: Tensor) -> dict[str, Tensor]:
        """Arguments that forward needs besides `x`, made up from it: for traces, tests and benchmarks."""
        return {}

    if TYPE_CHECKING:  # torch says Any

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def extra_repr(self) -> str:
        return ", ".join([str(self.num_features), *(f"{key}={value}" for key, value in self.options().items())])

    def options(self) -> dict[str, Any]:
        """The constructor's options besides num_features, device and dtype, as they stand."""
        options: dict[str, Any] = {"eps": self.eps, "affine": self.affine}
        if self.affine and self.bias is None:
            options["bias"] = False
        return {**options, **self.own_activation()}

    def own_activation(self) -> dict[str, str]:
        """The option `act`, where there is one."""
        return {} if self.bend is None else {"act": str(self.bend)}

    def end_in(self, act: Activation) -> None:
        """Have the output go through an activation."""
        self.bend, self.activates = act, True

    def activated(self, y: Tensor) -> Tensor:
        """What becomes of an output that was written without the activation."""
        return y if self.bend is None else self.bend(y)


def _features(value: int | Sequence[int], takes_shape: bool, name: str) -> int | tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value) if takes_shape and isinstance(value, Sequence) else ()
    if not sizes or any(
        type(size) is not int or size < 1 for size in sizes
    ):  # True is an int too, but not a number of channels
        wanted = " or a sequence of them for trailing dimensions" if takes_shape else ""
        raise OptionError(f"{name} expects num_features, the number of channels, as a positive integer{wanted}: got {value!r}")
    return value if isinstance(value, int) else sizes


def _activation(act: object, owner: str) -> Activation:
    """What `act` says, in the words of `make`."""
    if not isinstance(act, str):
        raise OptionError(
            f"{owner} expects act as a word, one of {', '.join(MODULES)}: got {act!r}; other activations follow as layers"
        )
    name, options = written(act)
    known = next((kind for kind in MODULES if kind == name), None)
    if known is None:
        raise OptionError(
            f"{owner} expects act to be one of {', '.join(MODULES)}: got {name!r}; other activations follow as layers"
        )
    among(options, ["negative_slope"] if known == "leaky_relu" else [], f"act={name!r} of {owner}")
    slope = options.get("negative_slope", SLOPE if known == "leaky_relu" else 0.0)
    if not isinstance(slope, int | float) or isinstance(slope, bool) or not math.isfinite(slope):
        raise OptionError(f"{owner} expects negative_slope as a finite number: got {slope!r} in act={act!r}; try {SLOPE}")
    return Activation(known, float(slope))


def one_of(name: str, option: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise unless an option has one of the values it may have."""
    if value not in choices:
        raise OptionError(f"{name} expects {option} to be one of {', '.join(map(repr, choices))}: got {value!r}")
