"""What only a GPU can show of the Triton kernels: streams, graphs, large tensors, and that training goes the same way.

`test_cuda.py` and `test_cuda_node.py` run on the GPU too where there is one.
"""

import pytest
import torch
from convergence import trained
from helpers import assert_same, example
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normsmith as ns
from normsmith.kernels import choose

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")
pytestmark = pytest.mark.gpu
METHODS = ("batch", "group", "layer", "instance", "switchable", "filtered", "filter_response", "uan", "mixture", "mode")


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_the_same_way(method):
    found, expected = (torch.tensor(trained(method, backend, "cuda")) for backend in ("cuda", "reference"))
    assert expected[-1] < 0.97 * expected[0], "nothing was learned"
    assert_same(found, expected, "losses", tolerance=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_kernels_are_chosen_for_a_gpu(dtype):
    x = torch.ones(8, 16, 64, device="cuda", dtype=dtype)
    assert choose.backend_for(x).__name__ == "normsmith.kernels.cuda"
    assert choose.prefer_torch("batch", x), "nothing is measured yet"


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name != "mode"]
)  # whose gate is a product of matrices, by cuBLAS
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_training_step_repeats_to_the_bit(method, memory_format):
    layer = ns.make(method, 64).cuda()
    x = torch.randn(16, 64, 56, 56, device="cuda").to(memory_format=memory_format).requires_grad_()
    start = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    def step():
        layer.load_state_dict(start)  # where a mixture starts is what the last batch left
        with ns.backend("cuda"):
            y = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = step(), step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_kernels_run_on_the_current_stream():
    layer, stream = ns.make("switchable", 64).cuda(), torch.cuda.Stream()
    x = torch.zeros(16, 64, 128, 128, device="cuda")
    expected = layer(torch.ones_like(x) + torch.arange(64, device="cuda").view(1, -1, 1, 1))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # what runs on another stream meanwhile would see zeros
        x.add_(1 + torch.arange(64, device="cuda").view(1, -1, 1, 1))
        found = layer(x)
    stream.synchronize()
    assert_same(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_can_be_captured_in_a_graph(method):
    layer = ns.make(method, 32).cuda()
    x = torch.randn(8, 32, 14, 14, device="cuda", requires_grad=True)

    def step():
        with ns.backend("cuda"):
            y = layer(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        x.mul_(3).add_(1)
    start = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    graph.replay()
    layer.load_state_dict(start)
    for a, b in zip(found, step(), strict=True):
        assert_same(a, b)


def test_more_elements_than_an_int32_can_count():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.zeros(2, 3, 2**29, device="cuda", dtype=torch.float16)
    x[1, 2, -(2**20) :] = 1
    with ns.backend("cuda"):
        y = ns.make("instance", 3, eps=1e-8).cuda()(x)
    assert_same(y[1, 2, -1].float(), torch.tensor((1 - 2**-9) / (2**-9 * (1 - 2**-9)) ** 0.5).cuda(), tolerance=1e-2)
    assert torch.equal(y[0], torch.zeros_like(y[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), ns.make("switchable", 16)).cuda()
    x = torch.randn(8, 3, 16, 16, device="cuda")
    results = []
    for backend in ("cuda", "reference"):
        with torch.autocast("cuda", dtype), ns.backend(backend):
            y = model(x)
        results.append([y, *torch.autograd.grad(y.float().square().mean(), model.parameters())])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert_same(a, b, tolerance=3e-2)


def test_another_device_than_the_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    layer, x = ns.make("switchable", 16).to("cuda:1"), torch.randn(4, 16, 9, 9, device="cuda:1")
    assert torch.cuda.current_device() == 0
    with ns.backend("reference"):
        expected = layer(x)
    with ns.backend("cuda"):
        assert_same(layer(x), expected)


def of_rank(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers of one rank's part of a batch, in the place of its own."""
    torch.cuda.set_device(rank)
    layer = ns.synchronize(ns.make("switchable", 12)).cuda()
    own = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    x = example((8, 12, 9, 9), torch.float32)[own].cuda().requires_grad_()
    with ns.backend("cuda"):
        y = DistributedDataParallel(layer, device_ids=[rank])(x)
    (y.square().sum() * world_size).backward()
    grads = {name: p.grad.cpu() for name, p in layer.named_parameters()}
    return {"y": y.detach().cpu(), "dx": x.grad.cpu() / world_size, **grads, "var": layer.running_var.cpu()}


def test_ranks_that_talk_by_nccl():
    """As many as there are GPUs, up to two: synchronised statistics under DistributedDataParallel are those of one process."""
    world_size = min(torch.cuda.device_count(), 2)
    ranks = run_ranks(world_size, of_rank, world_size, backend="nccl")
    layer, x = ns.make("switchable", 12), example((8, 12, 9, 9), torch.float32).requires_grad_()
    with ns.backend("reference"):
        y = layer(x)
    y.square().sum().backward()
    assert_same(torch.cat([rank["y"] for rank in ranks]), y.detach())
    assert_same(torch.cat([rank["dx"] for rank in ranks]), x.grad)
    for name, parameter in layer.named_parameters():
        assert_same(ranks[-1][name], parameter.grad, name)
    assert_same(ranks[-1]["var"], layer.running_var)


def test_compiled_layers_take_plain_torch_to_the_same_numbers():
    layer = ns.make("switchable", 16).cuda()
    x = torch.randn(8, 16, 9, 9, device="cuda")
    with ns.backend("cuda"):
        assert_same(torch.compile(layer)(x), layer(x))


def test_a_callable_made_of_a_graph():
    """As torch.cuda.make_graphed_callables makes it: forward and backward captured, replayed with other data."""
    layer, other = ns.make("group", 32).cuda(), ns.make("group", 32).cuda()
    x = torch.randn(8, 32, 14, 14, device="cuda", requires_grad=True)
    with ns.backend("cuda"):
        graphed = torch.cuda.make_graphed_callables(layer, (x.detach().clone().requires_grad_(),))
        results = [torch.autograd.grad(one(x).square().sum(), x)[0] for one in (graphed, other)]
    assert_same(*results)
