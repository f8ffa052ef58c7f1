"""What a layer-norm LSTM costs beside one written by hand and scripted: `python benchmarks/recurrent.py`, interleaved, forward + backward.

By hand is the layer-norm LSTM of torch's own benchmarks (custom_lstms.py) with our formula: all steps in one TorchScript function, layer
norm as torch's operator. `torch.nn.LSTM` has no norm: it is what the norms cost. The second hand-written one takes the products of all
inputs at once, as ours does.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import normsmith as ns
from normsmith.bench import record
from normsmith.bench.timing import interleave

ROUNDS = 11
SHAPES = ((28, 32, 28, 100), (100, 32, 64, 128), (50, 64, 128, 256))  # steps, samples, input, hidden


def by_hand(x: Tensor, w: Tensor, u: Tensor, b: Tensor, g_x: Tensor, g_h: Tensor, g_c: Tensor, b_c: Tensor) -> Tensor:
    """The outputs of all steps; each multiplies its own input."""
    h = torch.zeros(x.size(1), u.size(1))
    c = h
    outputs: list[Tensor] = []
    for one in x.unbind(0):
        own = F.layer_norm(F.linear(one, w), (w.size(0),), g_x)
        gates = own + F.layer_norm(F.linear(h, u), (w.size(0),), g_h) + b
        let_in, keep, new, let_out = gates.chunk(4, 1)
        c = torch.sigmoid(keep) * c + torch.sigmoid(let_in) * torch.tanh(new)
        h = torch.sigmoid(let_out) * torch.tanh(F.layer_norm(c, (u.size(1),), g_c, b_c))
        outputs += [h]
    return torch.stack(outputs)


def by_hand_at_once(x: Tensor, w: Tensor, u: Tensor, b: Tensor, g_x: Tensor, g_h: Tensor, g_c: Tensor, b_c: Tensor) -> Tensor:
    """The same, with one product for the inputs of all steps."""
    h = torch.zeros(x.size(1), u.size(1))
    c = h
    outputs: list[Tensor] = []
    for own in (F.layer_norm(F.linear(x, w), (w.size(0),), g_x) + b).unbind(0):
        gates = own + F.layer_norm(F.linear(h, u), (w.size(0),), g_h)
        let_in, keep, new, let_out = gates.chunk(4, 1)
        c = torch.sigmoid(keep) * c + torch.sigmoid(let_in) * torch.tanh(new)
        h = torch.sigmoid(let_out) * torch.tanh(F.layer_norm(c, (u.size(1),), g_c, b_c))
        outputs += [h]
    return torch.stack(outputs)


def runs(steps: int, samples: int, inputs: int, hidden: int) -> dict[str, Callable[[], object]]:
    """One forward and backward of each contestant, on the same input."""
    x = torch.randn(steps, samples, inputs)
    ours, batch, plain = (
        ns.LSTM(inputs, hidden),
        ns.LSTM(inputs, hidden, norm="batch", max_steps=steps),
        nn.LSTM(inputs, hidden),
    )
    found: dict[str, Callable[[], object]] = {}
    for name, layer in (("ours", ours), ("ours, batch norm", batch), ("nn.LSTM", plain)):
        found[name] = lambda layer=layer: _backward(layer(x)[0], list(layer.parameters()))  # type: ignore[misc]
    part = ours._part("_l0")
    assert part.bias_ih is not None
    norms = (part.norm_ih.weight, part.norm_hh.weight, part.norm_c.weight, part.norm_c.bias)  # type: ignore[union-attr]
    weights = [t.detach().clone().requires_grad_() for t in (part.weight_ih, part.weight_hh, part.bias_ih, *norms)]  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript
        for name, function in (("by hand", by_hand), ("by hand, inputs at once", by_hand_at_once)):
            scripted = torch.jit.script(function)
            torch.testing.assert_close(scripted(x, *weights), ours(x)[0], rtol=1e-4, atol=1e-5)
            found[name] = lambda scripted=scripted: _backward(scripted(x, *weights), weights)  # type: ignore[misc]
    return found


def _backward(y: Tensor, parameters: list[Tensor]) -> None:
    torch.autograd.grad(y.square().sum(), [p for p in parameters if p.requires_grad])


def main() -> None:
    """The table: milliseconds of ours, and its ratio to each."""
    table = Table(title="forward + backward, medians of paired ratios")
    others = ("by hand", "by hand, inputs at once", "nn.LSTM", "ours, batch norm")
    for heading in ("T×N×input×hidden", "ours, ms", *others):
        table.add_column(heading, justify="right")
    for shape in SHAPES:
        torch.manual_seed(0)
        times = interleave(runs(*shape), ROUNDS, warmup=3)
        ratios = (f"{times.ratio('ours', other):.2f}" for other in others)
        table.add_row("×".join(map(str, shape)), f"{1e3 * times.median('ours'):.1f}", *ratios)
    around = record.circumstances()
    Console().print(table)
    Console().print(f"{around['machine']}, torch {around['torch']}, allocator {around['allocator']}")


if __name__ == "__main__":
    main()
