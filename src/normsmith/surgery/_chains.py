"""Which layer reads a layer, through what acts on every channel by itself."""

from dataclasses import dataclass

from torch import nn

from normsmith.natural.geometry import PLAIN, Plain
from normsmith.surgery._coordinates import BATCH_NORMS
from normsmith.surgery._neighbours import Neighbours

_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish)
_ACTIVATIONS_MORE = (nn.ReLU6, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid)
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POOLS_MORE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d)
BY_CHANNEL = (*_ACTIVATIONS, *_ACTIVATIONS_MORE, *_DROPS, *_POOLS, *_POOLS_MORE)


@dataclass(frozen=True, eq=False)
class Chain:
    """From one layer to the next."""

    first: Plain
    between: tuple[nn.Module, ...]
    last: Plain

    @property
    def norms(self) -> list[nn.Module]:
        """The batch norms on the way."""
        return [module for module in self.between if isinstance(module, BATCH_NORMS)]

    @property
    def is_relu(self) -> bool:
        """Whether a ReLU is all there is on the way, but for batch norms."""
        rest = [module for module in self.between if not isinstance(module, (*BATCH_NORMS, nn.Identity))]
        return [type(module) for module in rest] == [nn.ReLU]


def chain(layer: Plain, seen: Neighbours) -> Chain | str:
    """The way from a layer to the only one that reads it, or why there is none."""
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return "has groups, and outputs of one group would mix with those of another"
    between: list[nn.Module] = []
    reader: nn.Module | str = layer
    while not isinstance(reader, str) and (reader is layer or not isinstance(reader, PLAIN)):
        if reader is not layer:
            between.append(reader)
        reader = _reader(reader, {layer, *between}, len(layer.weight), seen)
    if isinstance(reader, str):
        return reader
    assert isinstance(reader, PLAIN)
    if reader.weight.shape[1] != len(layer.weight):
        return f"is read by a {type(reader).__name__} with groups, or of another width"
    return Chain(layer, tuple(between), reader)


def _reader(module: nn.Module, passed: set[nn.Module], width: int, seen: Neighbours) -> nn.Module | str:
    """What reads a module's output next, or why the width of the layer cannot change."""
    calls = seen.of(module)
    result = calls[0].result if calls else 0
    readers = [user for user in seen.users.get(result, {}) if user not in passed]
    reader = readers[0] if readers else ""
    reasons = {
        f"is read by a {type(module).__name__} that runs {len(calls)} times, or does so itself": len(calls) != 1,
        "is read from outside, as the output of the model is": result in seen.kept or not readers,
        f"is read by {len(readers)} layers or operations, and its width changes for all": len(readers) > 1
        and not _writes_in_place(reader, seen),
        f"is read by the operation {reader!r}, not by a module": isinstance(reader, str),
        f"is read by a {type(reader).__name__}": not isinstance(reader, (*PLAIN, *BY_CHANNEL, *BATCH_NORMS, nn.Flatten)),
        "has its channels flattened together with positions": isinstance(reader, nn.Flatten)
        and seen.of(reader)[0].shapes[1][-1] != width,
    }
    return next((reason for reason, true in reasons.items() if true), reader)


def _writes_in_place(reader: nn.Module | str, seen: Neighbours) -> bool:
    """Whether what a module puts out is the tensor it was given: then later readers read it, not the input."""
    calls = [] if isinstance(reader, str) else seen.of(reader)
    return any(call.source == call.result for call in calls)
