"""What only a GPU can show of the Triton kernels: streams, graphs, large tensors, and that training goes the same way.

`test_cuda.py` and `test_cuda_node.py` run on the GPU too where there is one.
"""

import pytest
import torch
from helpers import assert_same
from torch import nn

import normsmith as ns
from normsmith.kernels import choose

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")
pytestmark = pytest.mark.gpu
METHODS = ("batch", "group", "layer", "instance", "switchable", "filtered", "filter_response", "uan", "mixture", "mode")


def trained(method: str, backend: str, device: str = "cuda", steps: int = 40) -> list[float]:
    """The losses of a small network that learns to tell random images apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), ns.make(method, 16), nn.ReLU(), nn.Conv2d(16, 32, 3), ns.make(method, 32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    ).to(device)  # fmt: skip
    x, labels = torch.randn(32, 3, 12, 12).to(device), torch.arange(32).remainder(4).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with ns.backend(backend):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_the_same_way(method):
    found, expected = (torch.tensor(trained(method, backend)) for backend in ("cuda", "reference"))
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
