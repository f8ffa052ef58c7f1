"""Pictures of a channel on the page: samples with what it looks at in them, and an input that it looks for."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.analysis.channels import activation_maximum, saliency
from normsmith.errors import DependencyError, InputError
from normsmith.report import Picture

SAMPLES, STEPS = 4, 128
JITTER, BLUR = 16, 64  # the side of an image is so many times as much
BRIGHTEST = 0.99  # of the gradients: what is above is as bright


def images_of(batch: Any) -> Tensor | None:
    """The first samples of a batch; None where the model's input is no tensor of images."""
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, Tensor) and batch.dim() == 4 and batch.is_floating_point() and batch.numel():
        return batch[:SAMPLES].detach().clone()
    return None


def pictures(model: nn.Module, images: Tensor | None, asked: Mapping[str, int]) -> dict[str, list[Picture]]:
    """The pictures of one channel of each layer that is asked for."""
    if asked and images is None:
        raise InputError(
            "save expects pictures= only for a model that was examined with batches of images, (N, C, H, W), first in them, and without "
            "forward=; leave pictures= out, or call ns.analysis.saliency"
        )
    return {name: _of_channel(model, images, name, channel) for name, channel in asked.items()} if images is not None else {}


def _of_channel(model: nn.Module, images: Tensor, name: str, channel: int) -> list[Picture]:
    where = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    images = images.to(where)
    heat = saliency(model, images, name, channel).abs().amax(1, keepdim=True).float()
    bright = heat.flatten(1).quantile(BRIGHTEST, 1).clamp_min(torch.finfo(torch.float32).tiny).view(-1, 1, 1, 1)
    shown = torch.cat([_stretched(images), _bytes((heat / bright).clamp_max(1)).expand(-1, 3, -1, -1)], 2)
    low, high = float(images.min()), float(images.max())
    bounds = (low, high) if high > low else (low - 1, low + 1)
    side = min(images.shape[2:])
    found = activation_maximum(
        model,
        name,
        channel,
        (1, *images.shape[1:]),
        steps=STEPS,
        bounds=bounds,
        jitter=side // JITTER,
        blur=side / BLUR,
    )
    rose = f"{float(found.activations[0]):.3g} to {float(found.activations[-1]):.3g}"
    what = f"channel {channel} of {name}"
    return [
        Picture(
            png(torch.cat(list(shown), 2)),
            f"Samples, and the gradient of {what} below them",
            f"What channel {channel} looks at: the gradient of its mean activation below each sample.",
        ),
        Picture(
            png(_stretched(found.x)[0]),
            f"An input that drives {what} high",
            f"What channel {channel} looks for: an input that raises its mean activation from {rose}, by gradient ascent from noise.",
        ),
    ]


def _stretched(images: Tensor) -> Tensor:
    """Images as bytes with three colours, each from its darkest to its brightest value."""
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return _bytes((images - low) / (high - low).clamp_min(1e-12))


def _bytes(images: Tensor) -> Tensor:
    return (images.detach().float().nan_to_num(0, 0, 0).cpu() * 255).round().to(torch.uint8)


def png(image: Tensor) -> bytes:
    """A picture of bytes, (1 or 3, height, width), as a PNG."""
    try:
        from PIL import Image  # noqa: PLC0415  (optional)
    except ImportError:
        raise DependencyError("a page with pictures expects pillow: pip install 'normsmith[report]'") from None
    rows = image.movedim(0, -1).contiguous().cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(rows if rows.shape[2] == 3 else rows[..., 0]).save(file, format="PNG", optimize=True)
    return file.getvalue()
