"""`train_style_transfer`: an encoder as a classifier, then a decoder by the losses, kept so that it goes on after a kill."""

import math
import time
from pathlib import Path

import torch
from rich.console import Console

from normsmith import data
from normsmith.data.dataset import Dataset
from normsmith.errors import InputError, ModelError, OptionError
from normsmith.models.style_transfer import StyleEncoder, StyleTransfer
from normsmith.style.keeping import Kept, digest, or_say
from normsmith.style.pairs import Pairs
from normsmith.style.phases import DecoderPhase, EncoderPhase, Phase
from normsmith.style.progress import shown
from normsmith.style.settings import Settings

SAVE_EVERY = 20.0  # seconds between two checkpoints


def train_style_transfer(
    path: str | Path,
    *,
    root: str | Path | None = None,
    encoder: StyleEncoder | None = None,
    settings: Settings | None = None,
    console: Console | None = None,
) -> StyleTransfer:
    """Train what `models.StyleTransfer` needs, from the pictures below `root`, and keep it in the file `path`.

    Without an `encoder` one is trained first, to tell the classes of the pictures; its norms are folded away, and it is frozen. How far it
    is stands in `path` with ".part" behind it: called again after a kill, the training goes on; to the same bits, unless
    `settings.minutes` ends it.
    """
    settings, console, path = settings or Settings(), console or Console(stderr=True), Path(path)
    kept, why = Kept.found(
        path.with_name(path.name + ".part"), settings.lasting() | {"encoder": None if encoder is None else digest(encoder)}
    )
    if why:
        console.print(why, soft_wrap=True)
    pictures, others = _pictures(settings, root, console)
    about = {"pictures": [pictures.name, *(other.name for other in others)], "seed": settings.seed}
    shares = {"encoder": settings.encoder_share, "decoder": 1 - settings.encoder_share} if encoder is None else {"decoder": 1.0}
    if encoder is None:
        if "encoder" not in kept.over:
            _train(EncoderPhase(pictures, settings), kept, _limit(settings, shares["encoder"]), console)
        with torch.random.fork_rng(devices=[]):
            encoder = StyleEncoder(settings.depths, width=settings.width)
        encoder.load_state_dict(kept.over["encoder"]["result"])
    pools = [data.train.inputs for data in (pictures, *others)]
    pairs = Pairs(pools, settings.decoder_batch, settings.crop, settings.seed)
    phase = DecoderPhase(encoder, pairs, settings)
    if "decoder" not in kept.over:
        _train(phase, kept, _limit(settings, shares["decoder"]), console)
    model = phase.transfer
    model.decoder.load_state_dict(kept.over["decoder"]["result"])
    for over in kept.over.values():
        about |= over["about"]
    model.about = about
    or_say(lambda: model.save(path), path)
    kept.path.unlink(missing_ok=True)
    return StyleTransfer.load(path)  # as later calls have it, in their memory format


def _train(phase: Phase, kept: Kept, limit: float, console: Console) -> None:
    """A phase from where it stands to its end."""
    step, seconds = 0, 0.0
    if kept.under_way is not None:
        step, seconds = kept.under_way["step"], kept.under_way["seconds"]
        phase.load(kept.under_way["state"])
        console.print(f"{phase.name}: going on at step {step}", soft_wrap=True)
    saved = time.monotonic()
    with shown(phase.name, console) as tell:
        while (progress := max(step / phase.steps, seconds / limit)) < 1:
            began = time.monotonic()
            loss = phase.update(step, progress)
            if not math.isfinite(loss):
                raise ModelError(
                    f"the {phase.name} is expected to learn: got a loss of {loss} at step {step}; give a smaller rate"
                )
            step, seconds = step + 1, seconds + time.monotonic() - began
            tell(progress, step, loss)
            if time.monotonic() - saved >= SAVE_EVERY:
                kept.under_way = {"step": step, "seconds": seconds, "state": phase.state()}
                kept.keep()
                saved = time.monotonic()
    about = {**phase.measured(), f"{phase.name} steps": step, f"{phase.name} seconds": round(seconds)}
    console.print(", ".join(f"{key} {value:.4g}" for key, value in about.items()), soft_wrap=True)
    kept.over[phase.name] = {"result": phase.result(), "about": about}
    kept.under_way = None
    kept.keep()


def _limit(settings: Settings, share: float) -> float:
    return math.inf if settings.minutes is None else 60 * settings.minutes * share


def _pictures(settings: Settings, root: str | Path | None, console: Console) -> tuple[Dataset, list[Dataset]]:
    """The set with classes, and what else there is to draw from."""
    pictures = data.load(settings.pictures, root)
    if pictures.task != "classification" or pictures.channels != 3:
        raise InputError(
            f"style transfer is trained on pictures in colour, with classes: got {pictures.task} with {pictures.channels} channels "
            f"in {settings.pictures!r}; tiny-imagenet is such a set"
        )
    if settings.paintings is None:
        return pictures, []
    try:
        return pictures, [data.load(settings.paintings, root)]
    except (InputError, OptionError) as error:
        console.print(f"styles are pictures of {settings.pictures} alone: {error}", soft_wrap=True)
        return pictures, []
