"""Synchronised: two processes with unequal batches are one process with the whole batch, in outputs, gradients and buffers."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import assert_same, example

import normsmith as ns

CASES = {
    "filtered": {"threshold": 1.5},
    "filtered, nothing selected": {"threshold": 0.4},
    "ibn": {},
    "ghost": {"batch_size": 2},
    "ghost, plain average": {"batch_size": 2, "momentum": None},
    "renorm": {"r_max": 1.5},
    "noisy": {"mean_range": 0.0, "std_range": 1.0, "mean_jitter": 0.0, "std_jitter": 0.0},
    "batch_instance": {"initial": 0.5},
}
SPLITS = {"unequal": (slice(0, 4), slice(4, 7)), "empty": (slice(0, 7), slice(7, 7))}


def step(name, x, dy, group=None):
    """Output, gradient of x, gradients of the parameters, buffers."""
    layer = ns.make(name.split(",")[0], 12, dtype=torch.float64, process_group=group, **CASES[name])
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad, [p.grad for p in layer.parameters()], list(layer.buffers())


def rank_runs(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, dy, found = example((7, 12, 5)), example((7, 12, 5), seed=3), {}
    for split in SPLITS:
        part = SPLITS[split][rank]
        for name in CASES:
            found[name, split] = step(name, x[part], dy[part], dist.group.WORLD)
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_runs, (str(folder),), nprocs=2)
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process(ranks, name, split):
    y, dx, parameters, buffers = step(name, example((7, 12, 5)), example((7, 12, 5), seed=3))
    summed = [torch.zeros_like(grad) for grad in parameters]
    for rank in range(2):
        part, (found_y, found_dx, found_parameters, found_buffers) = SPLITS[split][rank], ranks[rank][name, split]
        assert_same(found_y, y[part], "output")
        assert_same(found_dx, dx[part], "gradient")
        summed = [a + b for a, b in zip(summed, found_parameters, strict=True)]
        for found, expected in zip(found_buffers, buffers, strict=True):
            assert_same(found.double(), expected.double(), "buffer")
    for found, expected in zip(summed, parameters, strict=True):
        assert_same(found, expected, "gradient of a parameter")
