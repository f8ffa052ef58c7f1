"""`Closer`: what the closer look has found, by layer and for the model as a whole."""

from dataclasses import dataclass, field

from normsmith.analysis.smoothness import Smoothness
from normsmith.doctor.full.curvature import Condition
from normsmith.doctor.full.slopes import Slope
from normsmith.doctor.full.swaps import Swaps
from normsmith.surgery.gamma_decay import Strength


@dataclass(eq=False)
class Closer:
    """None and empty where a part was left out."""

    gains: dict[str, float] = field(default_factory=dict)  # |weight| / sigma, of the channel in the middle
    slopes: dict[str, Slope] = field(default_factory=dict)
    decays: dict[str, Strength] = field(default_factory=dict)
    swaps: Swaps | None = None
    smooth: Smoothness | None = None
    shifts: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    lr: float = 0.0
    expected: float = 0.0  # seconds
    seconds: float = 0.0

    def record(self, name: str) -> dict[str, float | None]:
        """The numbers of one layer, None where there are none."""
        slope, decay, condition = self.slopes.get(name), self.decays.get(name), self.conditions.get(name)
        return {
            "gain": self.gains.get(name),
            "gradient ratio": slope.ratio if slope else None,
            "gradient": slope.standardized if slope and slope.ratio is not None else None,
            "loss share": self.swaps.share(name) if self.swaps else None,
            "loss share back": self.swaps.share_back(name) if self.swaps else None,
            "gamma decay of variance": float(decay.from_var.mean()) if decay else None,
            "gamma decay of mean": float(decay.from_mean.mean()) if decay else None,
            "covariate shift": self.shifts.get(name),
            "fisher condition": condition.block if condition else None,
            "fisher condition of scales": condition.scales if condition else None,
        }

    def whole(self) -> dict[str, float]:
        """The numbers of the model as a whole."""
        found = {"expected seconds": self.expected, "seconds": self.seconds}
        if self.swaps is not None:
            gap = self.swaps.gap
            found |= {
                "loss by running statistics": self.swaps.running.mean().item(),
                "loss by batch statistics": self.swaps.batch.mean().item(),
                "loss gap": gap.mean,
                "loss gap from": gap.low,
                "loss gap to": gap.high,
            }
        if self.smooth is not None:
            low, high = self.smooth.loss_band
            found |= {
                "lr": self.lr,
                "smoothness": self.smooth.beta,
                "loss along the gradient from": low,
                "loss along the gradient to": high,
                "change of the gradient from": self.smooth.change_band[0],
                "change of the gradient to": self.smooth.change_band[1],
            }
        return found
