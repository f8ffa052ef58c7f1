"""Running a function in several real processes that talk by gloo, or by NCCL."""

import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a process that has imported these and done nothing yet: to start a rank costs no import of torch.
multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "numba", "normsmith"])


def run_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60, backend: str = "gloo"
) -> list[Any]:
    """What `function(rank, *arguments)` returns in each of `world_size` processes, None where one ended early; it must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        rest = (world_size, folder, timeout, backend, function, arguments)
        mp.start_processes(_rank, rest, nprocs=world_size, start_method="forkserver")
        files = [Path(folder) / f"{rank}.pt" for rank in range(world_size)]
        return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _rank(
    rank: int, world_size: int, folder: str, timeout: float, backend: str, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    wait = datetime.timedelta(seconds=timeout)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=wait)
    torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
    if timeout < 60:  # a test of ranks that fail: there is nobody to say good-bye to
        os._exit(0)
    dist.barrier()
    dist.destroy_process_group()
