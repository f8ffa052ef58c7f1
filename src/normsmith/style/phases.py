"""The two things that are trained, each with its loss: an encoder that tells classes apart, and a decoder that draws from features."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.data.batches import Batches
from normsmith.data.dataset import Dataset
from normsmith.models.style_transfer import StyleDecoder, StyleEncoder, StyleTransfer
from normsmith.style.pairs import Pairs
from normsmith.style.settings import Settings
from normsmith.surgery.fold import fold
from normsmith.surgery.param_groups import param_groups

_AUGMENT = "crop:padding=8, flip, colour:brightness=0.2,contrast=0.2,saturation=0.2"
_DECAY = 5e-2
_EXAMPLES = 8  # pictures that the folded encoder is proven on
_WARM_UP = 50  # steps until the rate is full


class Phase(ABC):
    """A module that is trained step by step; what is random in a step depends on its number."""

    name = ""

    def __init__(self, module: nn.Module, steps: int, rate: float, decay: float) -> None:
        self.module = module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.steps, self.rate = steps, rate
        self.optimizer = torch.optim.AdamW(param_groups(module, decay), lr=rate)

    @abstractmethod
    def loss(self, step: int, progress: float) -> Tensor:
        """What this step makes smaller; `progress` is the share of the training that is over."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """What is kept of it in the end, as a state_dict."""

    @abstractmethod
    def measured(self) -> dict[str, float]:
        """What is worth telling of it in the end, by name."""

    def update(self, step: int, progress: float) -> float:
        """One step, at a rate that rises for some steps and falls as a cosine; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(step, progress)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


class Classifier(nn.Module):
    """An encoder, the mean of its last stage over positions, and a linear layer."""

    def __init__(self, encoder: StyleEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width * encoder.reduction, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.head(self.encoder(images)[-1].mean((2, 3)))
        return logits


class EncoderPhase(Phase):
    """The encoder learns the classes of the pictures with batch norm, which is then folded into its convolutions.

    So its features before each ReLU have variance 1 on these pictures, as those of a normalised VGG.
    """

    name = "encoder"

    def __init__(self, pictures: Dataset, settings: Settings) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            encoder = StyleEncoder(settings.depths, width=settings.width, norm="batch")
            self.classifier = Classifier(encoder, len(pictures.classes))
        encoder.see(pictures.mean, pictures.std)
        super().__init__(self.classifier, settings.encoder_steps, settings.encoder_rate, _DECAY)
        size = min(settings.encoder_batch, len(pictures.train))
        self.batches = Batches(
            pictures.train, size, seed=settings.seed, augment=_AUGMENT, drop_last=True, memory_format=torch.channels_last
        )
        self.test = Batches(pictures.test, 100, shuffle=False, memory_format=torch.channels_last)
        self._stream: Iterator[tuple[Tensor, Tensor]] | None = None

    def loss(self, step: int, progress: float) -> Tensor:
        """The cross entropy, labels smoothed by a tenth."""
        if self._stream is None:
            self._stream = self._from(step)
        images, labels = next(self._stream)
        return F.cross_entropy(self.classifier(images), labels, label_smoothing=0.1)

    def _from(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = divmod(step, len(self.batches))
        while True:
            yield from self.batches.epoch(epoch, start)
            epoch, start = epoch + 1, 0

    def result(self) -> dict[str, Any]:
        """The encoder without norms."""
        self.classifier.eval()
        fold(self.classifier, next(iter(self.test))[0][:_EXAMPLES])
        return self.classifier.encoder.state_dict()

    @torch.no_grad()
    def measured(self) -> dict[str, float]:
        """The accuracy on what the set has to test with."""
        self.classifier.eval()
        right = sum(int((self.classifier(x).argmax(1) == y).sum()) for x, y in self.test)
        return {"encoder accuracy": right / len(self.test.inputs)}


class DecoderPhase(Phase):
    """The decoder learns to draw by the losses of content and style; before, it rehearses, drawing contents from their own features.

    The rehearsal, by the squared error of pixels, costs half as much a step, and what follows gets further for it.
    """

    name = "decoder"

    def __init__(self, encoder: StyleEncoder, pairs: Pairs, settings: Settings) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            decoder = StyleDecoder(encoder.depths, width=encoder.width)
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.transfer = StyleTransfer(encoder, decoder, style_weight=settings.style_weight)
        super().__init__(decoder, settings.decoder_steps, settings.decoder_rate, 0.0)
        self.pairs, self.rehearsal = pairs, settings.rehearsal
        self.last: dict[str, float] = {}

    def loss(self, step: int, progress: float) -> Tensor:
        """The sum of both losses for the pairs of this step, or the error of the pixels."""
        contents, styles = self.pairs.at(step)
        if progress < self.rehearsal:
            with torch.no_grad():
                features = self.transfer.encoder(contents)[-1]
            return F.mse_loss(self.transfer.decoder(features), contents)
        losses = self.transfer.losses(contents, styles)
        self.last = {"content loss": float(losses.content.detach()), "style loss": float(losses.style.detach())}
        return losses.total

    def result(self) -> dict[str, Any]:
        """The decoder."""
        return dict(self.module.state_dict())

    def measured(self) -> dict[str, float]:
        """The losses of the last step."""
        return {key: round(value, 4) for key, value in self.last.items()}
