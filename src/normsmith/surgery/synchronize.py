"""`synchronize`: the normalizers of a model take the batches of all ranks of a process group as one."""

import torch.distributed as dist
from torch import nn

from normsmith.errors import OptionError
from normsmith.methods._running import RunningNormalizer


def synchronize(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> list[str]:
    """Synchronise every normalizer of `model` that has batch statistics, and return their names; all ranks if no group is given.

    W ranks then equal one process with all their samples, in outputs and running statistics. For gradients the loss must be that of the
    whole: where DistributedDataParallel averages them, a rank's loss is the sum over its samples times W / the number of all samples;
    the mean over a rank's own samples is right only if all ranks hold equally many.

    Every rank must run the same forwards and backwards, with an empty batch if it has no data: one that skips leaves the others waiting
    until the time-out of the group, then they raise a `SynchronizationError` that names the layer.
    """
    if process_group is None:
        if not dist.is_initialized():
            raise OptionError(
                "synchronize expects a process group: got none, and no default one; call torch.distributed.init_process_group first"
            )
        process_group = dist.group.WORLD
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, RunningNormalizer)}
    for name, layer in found.items():
        layer.process_group = process_group
        layer.layer_name = f"{type(layer).__name__} {name!r}" if name else type(layer).__name__
    return list(found)
