"""What the whitening layers share: groups of channels, the running covariance or matrix, and the matrix of evaluation."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor

from normsmith.covariance import Covariance, in_rows, of_groups
from normsmith.errors import InputError, OptionError
from normsmith.methods._base import one_of
from normsmith.methods._matrices import condition
from normsmith.methods._options import Running
from normsmith.methods._parts import widened
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.surroundings import must_stay_plain
from normsmith.whitening import Mix, Triple, whiten_by

CURE = "use a larger batch, drop the last incomplete one, normalize with GroupNorm"


def finished(center: Tensor, matrix: Tensor, weight: Tensor | None, bias: Tensor | None) -> Triple:
    """What every mix ends with: the affine map of each channel worked into the matrix."""
    if weight is not None:
        matrix = matrix * weight.to(matrix.dtype).view(1, *matrix.shape[1:3], 1)
    return center, matrix, torch.zeros_like(center[:1]) if bias is None else bias.to(center.dtype).view(1, -1)


def mix_constant(cells: None, batch: None, mean: Tensor, matrix: Tensor, weight: Tensor | None, bias: Tensor | None) -> Triple:
    """Evaluation: the running mean and the matrix as constants."""
    return finished(mean, matrix, weight, bias)


class WhiteningNormalizer(RunningNormalizer):
    """A layer that multiplies the channels of each group by a matrix made of their covariance.

    - `group_size`: the channels are cut into groups of the largest divisor of num_features that is at most this; None is one group.
    - `running="covariance"` averages covariances over training, and evaluation makes its matrix of the average; `"matrix"` averages the
      matrices of the batches, as the code of IterNorm does.

    The running variance is the diagonal of the running covariance, so that a state of batch norm loads with `strict=False`, and then
    evaluates as batch norm does.
    """

    keeps_more: ClassVar[bool] = True
    turns: ClassVar[bool] = False  # whether the matrix has signs or an order that change from batch to batch

    def __init__(
        self,
        num_features: int,
        *,
        group_size: int | None = 64,
        running: Literal["covariance", "matrix"] = "covariance",
        **options: Unpack[Running],
    ) -> None:
        name = type(self).__name__
        one_of(name, "running", running, ("covariance", "matrix"))
        if running == "matrix" and self.turns:
            raise OptionError(
                f'{name} expects running="covariance": got "matrix", but its eigenvectors flip and trade places from batch to batch, so '
                "that their average means nothing"
            )
        if group_size is not None and (type(group_size) is not int or group_size < 1):
            raise OptionError(f"{name} expects group_size as a positive integer, or None for one group: got {group_size!r}")
        self.group_size, self.running = group_size, running
        self.groups = 1 if group_size is None else choose_group_number(num_features, group_size)
        super().__init__(num_features, **options)
        where: dict[str, Any] = {"device": options.get("device"), "dtype": options.get("dtype")}
        if self.running_mean is not None:
            size = num_features // self.groups
            identity = in_rows(torch.eye(size, **where).expand(self.groups, -1, -1)).clone()
            self.register_buffer(f"running_{'cov' if running == 'covariance' else 'matrix'}", identity)
        self._known = Known()
        self._constant: Tensor | None = None

    def state_shape(self) -> tuple[int, ...]:
        """Of mean, variance, count, number, and the rows of the covariance."""
        return (4 + self.num_features // self.groups, self.num_features)

    def mix(self) -> Mix:
        """The method's mix with its options."""
        raise NotImplementedError

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, covariance and matrix the identity."""
        super().reset_running_stats()
        if self.running_mean is not None:
            rows = self.rows
            rows.copy_(in_rows(torch.eye(len(rows), dtype=rows.dtype, device=rows.device).expand(self.groups, -1, -1)))

    @property
    def rows(self) -> Tensor:
        """The buffer of the running covariance or matrix, (g, C)."""
        found = self._buffers["running_cov" if self.running == "covariance" else "running_matrix"]
        assert found is not None
        return found

    def whitener(self, cov: Tensor) -> Tensor:
        """The matrix for a covariance, (R, G, g, g), before the affine map."""
        batch = Covariance.made(cov.new_zeros((len(cov), self.num_features)), cov, 1)
        return self.mix()(None, batch, None, None)[1]

    def spread_of(self, batch: Moments, sized: Tensor, dtype: torch.dtype) -> Tensor:
        """The variance and the rows of the covariance."""
        assert isinstance(batch, Covariance)
        return torch.cat([batch.var, in_rows(batch.cov[0])]).to(dtype)

    def final(self, batch: Moments) -> Tensor:
        """The unbiased variance and covariance, or the matrix of the biased covariance."""
        spread = super().final(batch)
        if self.running == "covariance":
            return spread
        matrix = self.whitener(of_groups(batch.var[1:]).unsqueeze(0))[0]
        return torch.cat([spread[:1], in_rows(matrix)])

    def kept(self, mean: Tensor, final_var: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The buffers, each with what moves it."""
        return [*super().kept(mean, final_var[0]), (self.rows, final_var[1:])]

    def covariance(self) -> Tensor:
        """The running covariance of each group, (G, g, g), unbiased."""
        if self.running_var is None or self.running == "matrix":
            raise OptionError(
                f'{type(self).__name__} expects track_running_stats=True and running="covariance" to know a covariance: got '
                f"track_running_stats={self.track_running_stats}, running={self.running!r}"
            )
        found = of_groups(self.rows)
        diagonal = torch.eye(len(self.rows), dtype=torch.bool, device=found.device)
        return torch.where(diagonal, self.running_var.view(self.groups, -1, 1), (found + found.mT) / 2)

    @torch.no_grad()
    def condition(self, x: Tensor | None = None) -> Tensor:
        """The condition number of each group's covariance, eps included: of the running one, or of a batch `x`.

        From about 1e6 on, what the smallest direction is multiplied with is rounding error in float32.
        """
        if x is None:
            return condition(self.covariance(), self.eps)
        self.check_input(x)
        batch = whiten_by(widened(x), self.mix(), None, None, groups=self.groups, sees="batch").batch
        assert isinstance(batch, Covariance)
        return condition(batch.cov[0], self.eps)

    def evaluated(self) -> tuple[Tensor, Tensor]:
        """Mean and matrix of evaluation, which no later forward changes."""
        mean = widened(self.constants()[0]).view(1, -1)
        if torch.compiler.is_exporting() and self._constant is not None:
            return mean, self._constant  # no exporter has to know how to factorize
        if self.running == "matrix":
            return mean, widened(of_groups(self.rows)).unsqueeze(0).clone()
        plain = torch.compiler.is_compiling() or must_stay_plain((self.rows,)) or self.rows.is_inference()
        return mean, self._factorized() if plain else self._up_to_date()

    def _factorized(self) -> Tensor:
        return self.whitener(widened(self.covariance()).unsqueeze(0))

    def _up_to_date(self) -> Tensor:
        """The matrix that was made last, if the statistics have not moved since."""
        assert self.running_var is not None
        if self._constant is None or not self._known.same(self.rows, self.running_var):
            with torch.no_grad():
                self._constant = self._factorized()
            self._known = Known(self.rows, self.running_var)
        return self._constant

    def train(self, mode: bool = True) -> Self:
        """As any module; on the way to evaluation the matrix is made, so that an export finds it."""
        super().train(mode)
        self._prepare()
        return self

    def _prepare(self) -> None:
        if not self.training and self.running_mean is not None and not must_stay_plain((self.running_mean,)):
            self._constant = self.evaluated()[1].detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._prepare()

    def one_mask(self, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
        """The mask, which has to be that of all channels: a covariance is one of whole vectors."""
        mask = self.check_mask(x, mask, lengths)
        if mask is not None and mask.shape[1] != 1:
            raise InputError(
                f"{type(self).__name__} expects a mask for all channels alike, (N, *spatial): got one of {mask.shape[1]} channels"
            )
        return mask

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.one_mask(x, mask, lengths)
        affine = (self.weight, self.bias)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            result = whiten_by(x, mix_constant, *self.evaluated(), *affine, groups=self.groups, sees="nothing", mask=mask)
            return self.activated(result.y)
        result = whiten_by(x, self.mix(), *affine, groups=self.groups, sees="batch", mask=mask, world=self.world)
        assert result.batch is not None
        self.update(result.batch)
        return self.activated(result.y)

    def options(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "running": self.running, **super().options()}


class Known:
    """Tensors as they were, told by themselves and their versions. A copy knows nothing."""

    def __init__(self, *tensors: Tensor) -> None:
        self._seen = [(t, t._version) for t in tensors]

    def same(self, *tensors: Tensor) -> bool:
        """Whether these are the tensors, unchanged."""
        pairs = zip(self._seen, tensors, strict=False)
        return bool(self._seen) and all(t is old and t._version == version for (old, version), t in pairs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Known":
        return Known()

    def __reduce__(self) -> Any:
        return Known, ()


def choose_group_number(num_features: int, group_size: int) -> int:
    """The number of groups of the largest size that divides the channels and is at most this."""
    if type(num_features) is not int or num_features < 1:
        return 1  # the constructor has the words for it
    return num_features // max(size for size in range(1, min(group_size, num_features) + 1) if num_features % size == 0)
