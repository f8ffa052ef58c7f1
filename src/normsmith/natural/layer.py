"""The layer that all natural-gradient networks are made of: a plain one in other coordinates, which a refresh chooses anew."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normsmith.methods.batch import BatchNorm
from normsmith.natural.coordinates import between
from normsmith.natural.geometry import Geometry, Plain
from normsmith.natural.spread import Spread
from normsmith.natural.states import Followers
from normsmith.natural.watch import Listen, Seen, When
from normsmith.surroundings import is_recomputing, without_autocast
from normsmith.world import SharedGroup, World


class NaturalLayer(nn.Module):
    """y = op(x; W) + b with W = R V U and b = R d - W c, and a batch norm of y if there is one.

    `whitened_weight` is V, `whitened_bias` d; `whitening` U, `center` c and `restoring` R are buffers. What is not there is the identity,
    or zero. `weight` and `bias` are W and b, for whoever reads those of a plain layer.
    """

    method = ""  # its name in `ns.reparametrize`
    listens = False  # whether a refresh needs the gradients at the output
    whitened_weight: nn.Parameter
    whitened_bias: nn.Parameter | None
    whitening: Tensor | None
    center: Tensor | None
    restoring: Tensor | None

    def __init__(self, layer: Plain) -> None:
        super().__init__()
        self.geometry = Geometry.of(layer)
        self.whitened_weight, self.whitened_bias = cast(nn.Parameter, layer.weight), cast(nn.Parameter | None, layer.bias)
        for name in ("whitening", "center", "restoring"):
            self.register_buffer(name, None)
        self.norm: BatchNorm | None = None
        self.seen = Seen()
        self.followers = Followers()
        self.every: int | None = None
        self.window = 1
        self.steps = 0
        self._group = SharedGroup(None)
        self.training = layer.training

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """W and b."""
        own = self.whitened_weight
        with without_autocast(own):
            wide = own.to(torch.promote_types(own.dtype, torch.float32))
            blocks, groups = self.geometry.blocks(wide), self.geometry.groups
            if self.whitening is not None:
                blocks = between(None, blocks, self.whitening.to(wide.dtype))
            if self.restoring is not None:
                blocks = (self.restoring.to(wide.dtype) @ blocks.flatten(2)).view(groups, -1, *blocks.shape[2:])
            bias = None if self.whitened_bias is None else self.whitened_bias.to(wide.dtype).view(groups, -1)
            if bias is not None and self.restoring is not None:
                bias = (self.restoring.to(wide.dtype) @ bias.unsqueeze(-1)).squeeze(-1)
            if self.center is not None:
                shift = blocks.sum(-1) @ self.center.to(wide.dtype).view(groups, -1, 1)
                bias = -shift.squeeze(-1) if bias is None else bias - shift.squeeze(-1)
            weight = self.geometry.unblocked(blocks).to(own.dtype)
            return weight, None if bias is None else bias.reshape(-1).to(own.dtype)

    @property
    def weight(self) -> Tensor:
        """W, computed."""
        return self.effective()[0]

    @property
    def bias(self) -> Tensor | None:
        """b, computed."""
        return self.effective()[1]

    def forward(self, x: Tensor) -> Tensor:
        """What the plain layer gives, normed if a norm belongs to it."""
        y = self.geometry(x, *self.effective())
        if self.seen.when == "always" or (self.seen.when == "training" and self.training):
            y = self._look(x, y)
        if self.norm is None:
            return y
        if self.geometry.kernel or y.dim() == 2:
            return self.norm(y)
        return self.norm(y.reshape(-1, y.shape[-1])).view(y.shape)

    def _look(self, x: Tensor, y: Tensor) -> Tensor:
        if not is_recomputing():
            self.observe(x)
        return y

    def observe(self, x: Tensor) -> None:
        """Take down what a refresh needs to know of an input."""
        self.seen.add(self.geometry.rows(x), self.geometry.groups)

    def listen(self, x: Tensor, y: Tensor) -> Tensor:
        """Pass an output on, and take down the gradients that will come back to it."""
        seen = self.seen
        if not torch.is_grad_enabled():
            return y
        if seen.probe is None or seen.probe.device != y.device:  # the layer was moved since it began to look
            seen.probe = self._silence().to(y.device).requires_grad_()
        samples = self.geometry.samples(x)
        seen.samples += samples
        heard: Tensor = Listen.apply(y, seen.probe, len(self.geometry.kernel), samples)  # type: ignore[no-untyped-call]
        return heard

    def refresh(self) -> None:
        """Choose the coordinates anew by what was seen, of all ranks if there are several; the function stays what it is."""
        raise NotImplementedError

    def attend(self, when: When) -> None:
        """Look from now on, or not, at what comes; what was seen before is forgotten."""
        self.seen = Seen(when, self._silence().requires_grad_() if self.listens and when != "never" else None)

    def plan(self, every: int | None, window: int, followers: Followers, group: dist.ProcessGroup | None) -> None:
        """Refresh after every so many optimizer steps, by what is seen in the `window` steps before."""
        self.every, self.window, self.followers, self._group = every, window, followers, SharedGroup(group)
        self.attend(self.due())

    def step_schedule(self, progress: float) -> None:
        """Count an optimizer step; look, or refresh, if it is time. What is not finite, or nothing at all, leaves all as it is."""
        if self.every is None:
            return
        self.steps += 1
        if self.steps % self.every == 0:
            if self.gather():
                self.refresh()
            self.attend(self.due())
        elif self.seen.when != self.due():
            self.attend(self.due())

    def due(self) -> When:
        """When to look, by the schedule."""
        if self.every is None or self.every - self.steps % self.every > self.window:
            return "never"
        return "training"

    def gather(self) -> bool:
        """Put what all ranks have seen in the place of what this one has; whether that is finite, and something."""
        world = self._world()
        seen = self.seen
        device = self.whitened_weight.device
        mine = seen.spread or Spread.none(self._observed(), self.geometry.groups, device)
        seen.spread = mine if world is None else mine.over_ranks(world)
        values = [*seen.spread]
        if self.listens:
            heard = None if seen.probe is None else seen.probe.grad
            back = self._silence() if heard is None else heard
            total = back.new_tensor(float(seen.samples))
            if world is not None:
                back, total = world.add(back, total)
            seen.probe = back / total.clamp_min(1)
            values.append(seen.probe)
        return bool(seen.spread.number > 0) and all(bool(v.isfinite().all()) for v in values)

    def _silence(self) -> Tensor:
        """No gradients."""
        groups, outputs = self.geometry.groups, self.whitened_weight.shape[0]
        shape = (groups, outputs // groups, outputs // groups)
        return torch.zeros(shape, dtype=torch.float64, device=self.whitened_weight.device)

    def _observed(self) -> int:
        """How many channels are looked at."""
        inputs = self.whitening.shape[-1] if self.whitening is not None else self.whitened_weight.shape[1]
        return inputs * self.geometry.groups

    def _world(self) -> World | None:
        group = self._group.group
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        return None if group is None or dist.get_world_size(group) == 1 else World(group, type(self).__name__)

    def get_extra_state(self) -> dict[str, Any]:
        """The steps counted, and what was seen for the next refresh, for a training that goes on from a checkpoint."""
        return {"steps": self.steps, "seen": self.seen.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on counting and looking from a checkpoint."""
        self.steps = state["steps"]
        self.attend(self.due())
        if self.seen.when != "never" and state.get("seen"):
            self.seen.load(state["seen"], self.whitened_weight.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take on the shapes of a checkpoint, which may have kept another number of directions."""
        for name in ("whitened_weight", "whitening", "restoring"):
            own, found = getattr(self, name), state_dict.get(prefix + name)
            if own is not None and isinstance(found, Tensor) and found.dim() == own.dim() and found.shape != own.shape:
                own.data = own.data.new_empty(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def folded(self) -> Plain:
        """A plain layer with the same function, in evaluation if a norm was part of it; it holds the same parameters where it can."""
        with torch.no_grad():
            weight, bias = self.effective()
            own = self.whitened_bias
            if self.norm is not None:
                weight, bias = absorbed(weight, bias, self.norm)
                own = self.norm.bias
            kept = self.whitened_weight
            kept = _holding(kept, weight)
            shifted = (
                None if bias is None else _holding(own if own is not None else nn.Parameter(bias, kept.requires_grad), bias)
            )
        layer = self.geometry.plain(kept, shifted)
        layer.training = self.training
        return layer

    def extra_repr(self) -> str:
        """Method, sizes and schedule."""
        outputs, inputs = self.whitened_weight.shape[:2]
        every = "" if self.every is None else f", every={self.every}"
        return f"{self.method}, {inputs * self.geometry.groups} → {outputs}, kernel={self.geometry.kernel}{every}"


def _holding(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    """The parameter with another value; of the same shape it stays the object it is."""
    if parameter.shape != value.shape:
        return nn.Parameter(value.clone(), parameter.requires_grad)
    parameter.copy_(value)
    return parameter


def absorbed(weight: Tensor, bias: Tensor | None, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias with the map of a norm in evaluation behind them."""
    mean, var = norm.constants()
    assert norm.weight is not None
    assert norm.bias is not None
    scale = norm.weight.double() / (var.double() + (norm.eps or 0.0)).sqrt()
    start = -mean.double() if bias is None else bias.double() - mean.double()
    scaled = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return scaled.to(weight.dtype), (start * scale + norm.bias.double()).to(weight.dtype)
