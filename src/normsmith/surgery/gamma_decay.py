"""`gamma_decay`: the regulariser that batch norm hides in its noise, as a term of the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods.population import PopulationNorm


@dataclass(frozen=True, eq=False)
class Strength:
    """zeta of one layer, a number for each channel, and the two parts it is the sum of."""

    from_var: Tensor  # (rho + 2) / (8 M) * F, of the noise of the batch's sigma
    from_mean: Tensor  # mean A'' / (2 M), of the noise of the batch's mean

    @property
    def zeta(self) -> Tensor:
        """The coefficient of weight²."""
        return self.from_var + self.from_mean


@dataclass(frozen=True, eq=False)
class GammaDecay:
    """The term to add to the loss, sum of zeta * weight² with zeta a constant, and the strengths by layer."""

    loss: Tensor
    layers: dict[str, Strength]


def gamma_decay(model: nn.Module) -> GammaDecay:
    """The gamma decay of every population norm of `model` that was built with `emulate`, by the statistics of its last forwards."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, PopulationNorm) and layer.emulate}
    if not found:
        raise OptionError(
            "gamma_decay expects population norms that keep its statistics: got none; build them with emulate=32, the batch size meant"
        )
    layers, terms = {}, []
    for name, layer in found.items():
        assert layer.emulate is not None
        batch = layer.emulate * (layer.positions if layer.count == "elements" else 1)
        kurtosis, curvature, fisher = layer.decay_statistics
        layers[name] = Strength((kurtosis + 2) / (8 * batch) * fisher, curvature / (2 * batch))
        if layer.weight is not None:
            terms.append((layers[name].zeta * layer.weight.square()).sum())
    return GammaDecay(torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else torch.zeros(()), layers)
