"""NS210: running statistics in DistributedDataParallel.

With `broadcast_buffers=True`, the default, every forward in training first overwrites the buffers of all ranks by those of rank 0. A
warning where `forward=` runs the model several times for a batch, as GANs do: the second forward overwrites statistics that the backward of
the first may need, and torch raises that a variable "has been modified by an inplace operation". So the threads cited, on GPUs; on the CPU
torch 2.13 does not look. (Ours keep copies.) Else for information: the statistics are those of rank 0 alone, or, without broadcasting, of
each rank its own, of which a checkpoint has one.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def is_synchronized(module: nn.Module) -> bool:
    """Whether a layer takes statistics over all ranks."""
    return isinstance(module, nn.SyncBatchNorm) or getattr(module, "process_group", None) is not None


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    around = next((w for w in seen.wrappers if isinstance(w, DistributedDataParallel)), None)
    layers = [layer for layer in seen.tracked() if layer.by_batch and not is_synchronized(layer.module)]
    if around is None or not layers:
        return
    broadcast = bool(around.broadcast_buffers)
    breaks = (
        {layer.name for layer in layers if isinstance(layer.module, _NormBase)} if broadcast and seen.forwards > 1 else set()
    )
    found: dict[str, dict[str, float | str]] = {
        layer.name: {"forwards for a batch": float(seen.forwards), "broadcast_buffers": str(broadcast)}
        for layer in layers
        if not breaks or layer.name in breaks
    }
    yield Finding(
        "NS210",
        "running statistics in DistributedDataParallel",
        "warning" if breaks else "info",
        tuple(found),
        found,
        "Before each forward in training, buffers are overwritten by those of rank 0, also those that the backward of an earlier forward "
        "of the same batch still needs: on GPUs it then raises an error. And what the other ranks took from that forward is lost."
        if breaks
        else "The ranks take statistics of their own batches. With broadcast_buffers=True those of rank 0 overwrite the others, without "
        "it each rank keeps its own.",
        "ns.synchronize(model)  # or broadcast_buffers=False and ns.recalibrate(model, loader) at the end",
        ("pytorch#22095", "pytorch#175024"),
    )
