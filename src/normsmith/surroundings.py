"""Who is looking: whether a forward runs under something that must see plain torch operations.

The autograd node and its kernels work on real memory. Whatever traces, transforms or intercepts operations gets the plain path,
which computes the same numbers from ordinary torch operations. This is the only file that reads torch's private state; each line of
it has a test.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter))
_AS_IT_IS = contextlib.nullcontext()


def must_stay_plain(tensors: tuple[Tensor, ...]) -> bool:
    """Whether the node would be wrong or invisible here: compile, export, torch.func, forward AD, subclasses, modes, tracing."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None:  # torch.func.grad, vmap, jvp, functionalize
        return True
    if forward_ad._current_level >= 0:  # torch.autograd.forward_ad
        return True
    if torch._C._len_torch_dispatch_stack() > 0:  # FakeTensorMode, FLOP counters, user modes
        return True
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return True
    return not _PLAIN_TYPES.issuperset(map(type, tensors))  # FakeTensor, DTensor, quantized and user subclasses


def is_batched(grad: Tensor) -> bool:
    """Whether a gradient is really many, from `is_grads_batched=True`: it has no memory of its own to read."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(grad) or torch._C._functorch.is_batchedtensor(grad))


def is_recomputing() -> bool:
    """Whether this forward runs again inside a backward, as activation checkpointing does: its buffers have moved already."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Statistics and mixes are computed in the type they are in, autocast or not."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return _AS_IT_IS
