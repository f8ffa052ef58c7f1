"""Threads, forks and the process around the kernels; what happens once per process is looked at in a process of its own."""

import threading
from functools import cache

import pytest
import torch
from helpers import assert_same
from isolated import facts_of

import normsmith as ns

LARGE = (8, 16, 64, 64)  # enough for several cores

FIRST_USE = """
import gc, json, sys, torch, normsmith as ns
{before}
for name in ("batch", "layer", "instance", "group"):
    ns.make(name, 8)(torch.randn(4, 8, 5, 5, requires_grad=True)).sum().backward()
loaded = [name for name in sys.modules if name.startswith(("numba", "normsmith.kernels.cpu"))]
import normsmith.kernels.cpu, numba
layer, threads = numba.threading_layer(), torch.get_num_threads()
print(json.dumps({{"loaded by small layers": loaded, "threads": threads, "layer": layer, "gc": gc.isenabled()}}))
"""

FIRST_USES = {
    "one thread": ("torch.set_num_threads(1)", 1, True),
    "three threads, no garbage collector": ("torch.set_num_threads(3); gc.disable()", 3, False),
}

WORKERS = """
import json, torch, normsmith as ns
torch.set_num_threads(2)
x = torch.randn(8, 16, 64, 64, generator=torch.Generator().manual_seed(0))

def numbers():
    layer = ns.BatchNorm(16)
    with ns.backend("cpu"):
        y = layer(x).detach()
    return torch.cat([y.flatten()[::997], layer.running_mean, layer.running_var]).double()

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return numbers()

def by_workers(threads):
    # A worker has one thread unless it asks for more.
    more = {"num_workers": 2, "timeout": 60, "multiprocessing_context": "fork"}
    return list(torch.utils.data.DataLoader(Data(), worker_init_fn=lambda i: torch.set_num_threads(threads), **more))

(x * 2).sum()  # torch's own pool has run
"""


@cache
def after_first_use(before: str):
    return facts_of(FIRST_USE.format(before=before))


def train_step(x):
    layer = ns.BatchNorm(x.shape[1])
    x = x.clone().requires_grad_()
    with ns.backend("cpu"):
        y = layer(x)
        y.backward(torch.sin(y.detach()))
    return y.detach(), x.grad, layer.weight.grad, layer.running_var


@pytest.mark.parametrize("case", FIRST_USES)
def test_first_use_leaves_the_number_of_torch_threads(case):
    before, threads, _ = FIRST_USES[case]
    assert after_first_use(before)["threads"] == threads


@pytest.mark.parametrize("case", FIRST_USES)
def test_the_kernels_share_the_threads_of_torch(case):
    assert after_first_use(FIRST_USES[case][0])["layer"] == "omp"


@pytest.mark.parametrize("case", FIRST_USES)
def test_import_leaves_the_garbage_collector_as_it_was(case):
    before, _, collects = FIRST_USES[case]
    assert after_first_use(before)["gc"] == collects


def test_small_layers_do_not_import_numba():
    assert after_first_use(FIRST_USES["one thread"][0])["loaded by small layers"] == []


@pytest.mark.parametrize(
    "order",
    [
        "mine = numbers(); theirs = by_workers(1)",
        "mine = numbers(); theirs = by_workers(2)",
        "theirs = by_workers(1); mine = numbers()",
    ],
)
def test_workers_of_a_data_loader_get_the_numbers_of_their_parent(order):
    """A parallel kernel in the parent leaves OpenMP in a state in which another one would end the forked child."""
    found = facts_of(WORKERS + order + "\nprint(json.dumps([mine.tolist(), [batch[0].tolist() for batch in theirs]]))")
    mine = torch.tensor(found[0])
    assert len(found[1]) == 4
    for theirs in found[1]:
        assert_same(torch.tensor(theirs), mine)


@pytest.mark.parametrize("channels_last", [False, True])
def test_several_python_threads_at_once(channels_last):
    inputs = [torch.randn(LARGE, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    if channels_last:
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    expected = [train_step(x) for x in inputs]
    found, barrier = {}, threading.Barrier(len(inputs))

    def work(i):
        barrier.wait()
        for turn in range(5):
            found[i, turn] = train_step(inputs[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 5 * len(inputs)
    for (i, _), results in found.items():
        assert all(torch.equal(a, b) for a, b in zip(results, expected[i], strict=True))


def test_storages_stay_resizable():
    x, layer = torch.randn(LARGE, requires_grad=True), ns.BatchNorm(LARGE[1])
    with ns.backend("cpu"):
        y = layer(x)
        y.sum().backward()
        layer.eval()(x)
    for tensor in (x, y, x.grad, *layer.state_dict().values()):
        tensor.untyped_storage().resize_(0)
        assert tensor.untyped_storage().nbytes() == 0


def test_more_threads_than_numba_has_are_no_error():
    before = torch.get_num_threads()
    x = torch.randn(LARGE)
    expected = train_step(x)
    try:
        torch.set_num_threads(64)
        found = train_step(x)
        assert torch.get_num_threads() == 64
    finally:
        torch.set_num_threads(before)
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b)
