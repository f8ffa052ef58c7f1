"""Several ranks as one process: outputs, gradients and buffers, whatever the split; and what happens when a rank is missing."""

import copy
import os
import time
import warnings
from functools import cache

import pytest
import torch
import torch.distributed as dist
from helpers import CHANNELS, VARIANTS, assert_same, example
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normsmith as ns

SPLITS = {2: ((4, 4), (5, 3), (8, 0)), 3: ((3, 3, 2), (5, 0, 3))}
SHARED = [case for case in VARIANTS if case.entry.running and not case.entry.random]
SHAPE = (8, CHANNELS, 5, 3)


def splits_of(index):
    """All of them for a method as it is by default; with options, one for each size of the world, in turn."""
    if SHARED[index].entry.ordered or not SHARED[index].options:
        return [split for splits in SPLITS.values() for split in splits]
    return [splits[index % len(splits)] for splits in SPLITS.values()]


CHOSEN = [(split, index) for index in range(len(SHARED)) for split in splits_of(index)]


def rows_of(rank, split):
    start = sum(split[:rank])
    return slice(start, start + split[rank])


def step(layer, x, dy, extra):
    """Output, gradients and buffers of two steps of training, the second of which is looked at."""
    layer(x * 2 - 1, **extra)
    x = x.clone().requires_grad_()
    y = layer(x, **extra)
    wanted = {"x": x, **{k: p for k, p in layer.named_parameters() if p.requires_grad}}
    grads = torch.autograd.grad(y, list(wanted.values()), dy, allow_unused=True, materialize_grads=True)
    return {
        "output": y.detach(),
        **{f"gradient of {k}": g for k, g in zip(wanted, grads, strict=True)},
        **{f"buffer {k}": b.clone() for k, b in layer.named_buffers()},
    }


def problem(case):
    layer, x, dy = case.make(), example(SHAPE), example(SHAPE, seed=5)
    return layer, x, dy, layer.example_inputs(x)


def all_steps(rank, world_size):
    found = {}
    for split, index in (chosen for chosen in CHOSEN if len(chosen[0]) == world_size):
        layer, x, dy, extra = problem(SHARED[index])
        ns.synchronize(layer)
        own = rows_of(rank, split)
        found[split, index] = step(layer, x[own], dy[own], {k: v[own] for k, v in extra.items()})
    return found


@pytest.fixture(scope="module")
def ranks_steps():
    """All of them by one start of the ranks for each size of the world: an exception fails every test at once."""
    return {world_size: run_ranks(world_size, all_steps, world_size) for world_size in SPLITS}


@cache
def by_one_process(index):
    return step(*problem(SHARED[index]))


@pytest.mark.parametrize(("split", "index"), CHOSEN, ids=[f"{SHARED[index]}-{split}" for split, index in CHOSEN])
def test_ranks_equal_one_process(split, index, ranks_steps):
    if SHARED[index].entry.ordered and any(rows % SHARED[index].make().batch_size for rows in split):
        pytest.skip("its small batches stay within a rank, and these splits cut them")
    expected = by_one_process(index)
    ranks = [found[split, index] for found in ranks_steps[len(split)]]
    for what, value in expected.items():
        if what in {"output", "gradient of x"}:
            assert_same(torch.cat([rank[what] for rank in ranks]), value, what)
        elif what.startswith("gradient"):
            assert_same(torch.stack([rank[what] for rank in ranks]).sum(0), value, what)
        else:
            for rank in ranks:
                assert_same(rank[what].double(), value.double(), what)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 6, 3), ns.BatchNorm(6), nn.ReLU()
        self.deep, self.head = nn.Sequential(nn.Conv2d(6, 4, 1), ns.BatchNorm(4)), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.deep(self.act(self.norm(self.conv(x)))).mean((2, 3)))


def data():
    torch.manual_seed(3)
    return Net().double(), torch.randn(9, 3, 6, 6, dtype=torch.float64), torch.randint(0, 2, (9,))


def ddp_step(rank, split):
    net, x, target = data()
    names = ns.synchronize(net)
    assert names == ["norm", "deep.1"]
    parallel = DistributedDataParallel(net)
    own = rows_of(rank, split)
    loss = nn.functional.cross_entropy(parallel(x[own]), target[own], reduction="sum") * len(split) / len(x)
    loss.backward()
    return {k: p.grad for k, p in net.named_parameters()}, dict(net.named_buffers())


@pytest.mark.parametrize("split", [(5, 4), (4, 2, 3)], ids=str)
def test_inside_distributed_data_parallel(split):
    net, x, target = data()
    nn.functional.cross_entropy(net(x), target).backward()
    for grads, buffers in run_ranks(len(split), ddp_step, split):
        for name, parameter in net.named_parameters():
            assert_same(grads[name], parameter.grad, f"gradient of {name}")
        for name, buffer in net.named_buffers():
            assert_same(buffers[name].double(), buffer.double(), f"buffer {name}")


def sharded_step(rank, world_size):
    from torch.distributed.fsdp import fully_shard

    net, x, target = data()
    ns.synchronize(net)
    fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (world_size,)))
    own = rows_of(rank, (5, 4))
    loss = nn.functional.cross_entropy(net(x[own]), target[own], reduction="sum") * world_size / len(x)
    loss.backward()
    return {k: p.grad.full_tensor() for k, p in net.named_parameters()}


def test_inside_fully_sharded():
    net, x, target = data()
    nn.functional.cross_entropy(net(x), target).backward()
    for grads in run_ranks(2, sharded_step, 2):
        for name, parameter in net.named_parameters():
            assert_same(grads[name], parameter.grad, f"gradient of {name}")


def two_forwards(rank, parallel):
    """The pattern of a discriminator: real and fake through one net, one backward; the frozen layer's buffers are broadcast in between."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), ns.BatchNorm(4), ns.BatchNorm(4, frozen=True), nn.Flatten(), nn.Linear(36, 1)
    ).double()
    run = DistributedDataParallel(net) if parallel else net
    real, fake = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    (run(real).square().mean() - run(fake).mean()).backward()
    return [p.grad for p in net.parameters()]


def test_two_forwards_before_one_backward():
    for alone, together in zip(two_forwards(0, False), run_ranks(2, two_forwards, True)[0], strict=True):
        assert_same(together, alone)


def one_skips(rank, where):
    net, x, target = data()
    ns.synchronize(net)
    if rank == 1 and where == "dies":
        os._exit(0)
    if rank == 1 and where == "forward":
        time.sleep(6)
        return "skipped"
    try:
        loss = nn.functional.cross_entropy(net(x), target)
        if rank == 1:
            time.sleep(6)
            return "skipped"
        loss.backward()
    except ns.SynchronizationError as error:
        return str(error)
    return "went through"


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_rank_that_skips_is_an_error_that_names_the_layer(where):
    message, other = run_ranks(2, one_skips, where, timeout=3)
    assert other == "skipped"
    layer = "BatchNorm 'norm'" if where == "forward" else "BatchNorm 'deep.1'"
    assert message.startswith(f"{layer} expected all 2 ranks"), message
    assert "\n" not in message


def test_a_rank_that_dies_is_an_error_that_names_the_layer():
    message, other = run_ranks(2, one_skips, "dies", timeout=3)
    assert other is None
    assert message.startswith("BatchNorm 'norm' expected all 2 ranks"), message


def compiled_step(rank, fullgraph):
    net, x, target = data()
    ns.synchronize(net)
    own = rows_of(rank, (5, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = torch.compile(net, backend="aot_eager", fullgraph=fullgraph)
        loss = nn.functional.cross_entropy(compiled(x[own]), target[own], reduction="sum") / len(x)
        loss.backward()
    return {k: p.grad for k, p in net.named_parameters()}, [str(w.message) for w in caught]


def test_compiled():
    net, x, target = data()
    nn.functional.cross_entropy(net(x), target).backward()
    ranks = run_ranks(2, compiled_step, True)
    for name, parameter in net.named_parameters():
        assert_same(sum(grads[name] for grads, _ in ranks), parameter.grad, f"gradient of {name}")


def copied(rank):
    layer = ns.BatchNorm(4)
    ns.synchronize(layer)
    other = copy.deepcopy(layer)
    return other.process_group is layer.process_group is dist.group.WORLD, layer


def test_a_copy_shares_the_group_and_a_pickle_leaves_it():
    for same, layer in run_ranks(2, copied):
        assert same
        assert layer.process_group is None


def test_without_a_group():
    with pytest.raises(ns.OptionError, match="init_process_group first"):
        ns.synchronize(ns.BatchNorm(3))
