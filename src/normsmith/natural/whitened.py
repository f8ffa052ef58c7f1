"""Whitened natural neural networks: every layer reads whitened inputs, and trains the weights of those.

Formula: y = V U (x - c) + d, U = (L + eps)^(-1/2) Dᵀ of the covariance D L Dᵀ of x, c its mean (`basis="zca"`: D in front). V and d are
trained, U and c constants. A refresh keeps the function: V <- W U⁻¹, d <- b + W c with W = V U and b = d - W c from before. A gradient step
on V is W <- W - lr (dW - db cᵀ) S⁻¹: the gradient preconditioned by the covariance S = U⁻¹ U⁻ᵀ of the inputs.

- "wnn", or PRONG: as it stands.
- "prong_plus": a batch norm of y behind it, with d as its bias.
- "gwnn_pre": as that, and of U only the largest eigenvalues' rows, a share `energy` of their sum (or `rank` rows): V is out × rank. A
  refresh then keeps the function up to what the discarded directions add.

Convolutions whiten channels, positions being samples; each group has its own covariance. A layer without bias, and without a norm behind
it, has no constant to take a mean into: c is 0 and second moments are not centred, which is the Fisher factor of such a layer.
`eps` counts in mean eigenvalues, so that fewer samples than channels, or dead units, do no harm.

Differs from the references: they add eps to eigenvalues as they are (TensorFlow: 0.1) or to squared singular values before the division by
n - 1 (Theano); the TensorFlow one has the transpose of U, which keeps the function but does not whiten. "gwnn_pre" is after Luo, 2017,
reconstructed: the rule for the rank is ours.
Cost: the product V U, independent of the batch; while it looks, a covariance of the inputs.
Fails when: inputs drift faster than refreshes follow. Weights are large where eigenvalues are small, so weight decay means something else.
Reference: Desjardins, Simonyan, Pascanu and Kavukcuoglu, "Natural Neural Networks", NeurIPS 2015; Luo, "Learning Deep Architectures via
Generalized Whitened Neural Networks", ICML 2017.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods.batch import BatchNorm
from normsmith.natural.coordinates import Coordinates
from normsmith.natural.geometry import Plain
from normsmith.natural.layer import NaturalLayer
from normsmith.natural.states import Change
from normsmith.natural.whitener import Basis, Whitener, rank_for, whitener


@dataclass(frozen=True)
class Whitening:
    """How inputs are whitened."""

    eps: float = 1e-3
    basis: Basis = "pca"
    energy: float = 1.0
    rank: int | None = None  # instead of energy

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise OptionError(f"whitening expects eps, in mean eigenvalues, of 0 or more: got {self.eps!r}; try 1e-3")
        if self.basis not in {"pca", "zca"}:
            raise OptionError(f"whitening expects basis as 'pca' or 'zca': got {self.basis!r}")
        if not 0 < self.energy <= 1:
            raise OptionError(
                f"whitening expects energy, the share of variance to keep, above 0 and up to 1: got {self.energy!r}"
            )
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise OptionError(f"whitening expects rank as a positive number of directions, or None: got {self.rank!r}")
        if self.basis == "zca" and (self.energy < 1 or self.rank is not None):
            raise OptionError("whitening expects basis='pca' where directions are left out: got 'zca', which has them all")


class WhitenedLayer(NaturalLayer):
    """A layer that reads whitened inputs; `settled` once its first refresh has fixed how many directions it keeps.

    `normed`: a norm behind takes the mean away, whether it belongs to the layer or not.
    """

    method = "wnn"

    def __init__(self, layer: Plain, options: Whitening, *, normed: bool = False) -> None:
        super().__init__(layer)
        self.options, self.normed = options, normed
        self.settled = False
        weight, groups = layer.weight, self.geometry.groups
        inputs = weight.shape[1]
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.whitening = torch.eye(inputs, device=weight.device, dtype=wide).repeat(groups, 1, 1)
        self.center = None if layer.bias is None else self.whitening.new_zeros(inputs * groups)

    def expect_norm(self) -> None:
        """Have a bias whatever the plain layer had: it will be that of a norm behind."""
        if self.whitened_bias is None:
            assert self.whitening is not None
            own = self.whitened_weight
            self.whitened_bias = nn.Parameter(own.new_zeros(len(own)), own.requires_grad)
            self.center = self.whitening.new_zeros(self.whitening.shape[0] * self.whitening.shape[2])

    def coordinates(self) -> Coordinates:
        """U, c and R as they are now, in float64."""
        assert self.whitening is not None
        u, center, r = (None if t is None else t.double().clone() for t in (self.whitening, self.center, self.restoring))
        assert u is not None
        center = u.new_zeros(u.shape[0], u.shape[2]) if center is None else center.view(u.shape[0], -1)
        return Coordinates(u, center, r)

    @torch.no_grad()
    def refresh(self) -> None:
        """Whiten what was seen."""
        assert self.seen.spread is not None
        old, spread = self.coordinates(), self.seen.spread
        found = self._whitener(spread.covariance(centred=self.center is not None or self.normed))
        center = torch.zeros_like(old.center) if self.center is None else spread.mean.view_as(old.center)
        self._move(old, Coordinates(found.matrix, center, self._restoring(), found.inverse))

    def _restoring(self) -> Tensor | None:
        """The new R."""
        return None

    def _whitener(self, covariance: Tensor) -> Whitener:
        options, channels = self.options, covariance.shape[-1]
        if self.settled:
            assert self.whitening is not None
            return whitener(covariance, options.eps, basis=options.basis, rank=self.whitening.shape[1])
        found = whitener(covariance, options.eps, basis=options.basis)
        rank = rank_for(found.eigenvalues, options.energy) if options.rank is None else min(options.rank, channels)
        if rank == channels:
            return found
        return Whitener(found.matrix[:, :rank], found.inverse[..., :rank], found.eigenvalues, found.damped)

    def _move(self, old: Coordinates, new: Coordinates) -> None:
        """Express the function in other coordinates."""
        parameter, bias = self.whitened_weight, self.whitened_bias
        blocks = self.geometry.blocks(parameter).double()
        flat = blocks.new_zeros(blocks.shape[:2]) if bias is None else bias.double().view(blocks.shape[:2])
        whole, constant = old.function(blocks, flat)
        assert constant is not None
        v, d = new.parameters(whole, constant)
        value = self.geometry.unblocked(v)
        if value.shape == parameter.shape:
            parameter.copy_(value)
        else:
            self.whitened_weight = nn.Parameter(value.to(parameter.dtype), parameter.requires_grad)
        if bias is not None:
            bias.copy_(d.flatten())
        elif self.norm is not None and self.norm.running_mean is not None:
            self.norm.running_mean -= d.flatten().to(self.norm.running_mean.dtype)
        for name, tensor in (("whitening", new.whitening), ("center", new.center.flatten()), ("restoring", new.restoring)):
            buffer = getattr(self, name)
            if buffer is not None and tensor is not None:
                setattr(self, name, buffer.copy_(tensor) if buffer.shape == tensor.shape else tensor.to(buffer.dtype))
        self.settled = True
        if self.whitened_weight is parameter:
            self.followers.tell(Change(parameter, bias, self.geometry, old, new))

    @torch.no_grad()
    def take_norm(self, mean: Tensor, var: Tensor) -> None:
        """Put a batch norm behind, whose weight and bias make up for it; `mean` and `var` are those of the outputs, per channel."""
        parameter, bias = self.whitened_weight, self.whitened_bias
        assert bias is not None
        norm = BatchNorm(len(mean), device=parameter.device, dtype=parameter.dtype)
        buffers, weight = dict(norm.named_buffers()), dict(norm.named_parameters())["weight"]
        buffers["running_mean"].copy_(mean - bias.double())
        buffers["running_var"].copy_(var)
        weight.copy_((var + (norm.eps or 0.0)).sqrt())
        weight.requires_grad_(parameter.requires_grad)
        norm.bias = bias
        bias.copy_(mean)
        norm.training = self.training
        self.whitened_bias, self.norm = None, norm
