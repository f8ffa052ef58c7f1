"""`place_ibn`: instance-batch norm where IBN-Net has it, in models built of residual or dense blocks."""

from typing import Literal

from torch import fx, nn

from normsmith.errors import ModelError
from normsmith.methods._base import one_of
from normsmith.methods.instance import InstanceNorm
from normsmith.surgery._blocks import Block, addition, blocks, trace
from normsmith.surgery._models import places, refuse_wrapped
from normsmith.surgery._recognise import recognise
from normsmith.surgery._source import NotUnderstoodError, is_norm
from normsmith.surgery._successor import HOOKS, succeed

AFTER_ADDITION = "after_addition"
_BY_HAND = "place by hand with ns.convert(model, {name: 'ibn'})"


def place_ibn(model: nn.Module, variant: Literal["a", "b"]) -> list[str]:
    """Make `model` an IBN-Net, in place, and return the names of the new layers.

    - `"a"`: the first norm of the convolution branch of every residual block becomes `ns.IBN`, half of its channels instance norm, in the
      first three stages. In a DenseNet it is the first norm of every third layer of a stage, with a ratio of 0.4, as the authors do.
    - `"b"`: an instance norm with weight 1 and bias 0 comes behind the addition of the last block of the first two stages, before its
      ReLU, and the first norm of the stem becomes instance norm. It adds parameters: do it before making the optimizer. In a DenseNet,
      for which there is no reference, the norm of the transition behind each of these stages becomes instance norm; nothing is added.

    The last stage stays as it is, whatever the number of stages. A block is a module whose forward adds its input, or what a shortcut
    makes of it, to a branch with convolutions; blocks with the same parent are a stage. Batch norms are replaced as by `ns.convert`: with
    their own weight and bias, eps, momentum, mode, hooks, activation, and the running statistics of the channels that stay batch norm. A
    block that gets a norm behind its addition is replaced by a `torch.fx.GraphModule` of the same submodules, so that the state dict
    gains only `<block>.after_addition`; whatever else its class could do is gone.
    """
    one_of("place_ibn", "variant", variant, ("a", "b"))
    refuse_wrapped(model, "place_ibn")
    stages: dict[str, list[Block]] = {}
    for block in blocks(model):
        stages.setdefault(block.parent, []).append(block)
    if len(stages) < 2:
        got = f"{len(next(iter(stages.values())))} blocks in a single one" if stages else "none"
        raise ModelError(f"place_ibn expects residual blocks in at least two stages: got {got}; {_BY_HAND}")
    shallow = list(stages.values())[:-1]
    new = _variant_a(model, shallow[:3]) if variant == "a" else _variant_b(model, shallow[:2])
    everywhere = places(model)
    for old, layer in new:
        for name in everywhere.get(old, ()):
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, layer)
    after = places(model)
    return [after[layer][0] + (f".{AFTER_ADDITION}" if isinstance(layer, fx.GraphModule) else "") for _, layer in new]


def _variant_a(model: nn.Module, stages: list[list[Block]]) -> list[tuple[nn.Module, nn.Module]]:
    chosen = [(block, 0.5) for stage in stages for block in stage if block.join == "add"]
    chosen += [(block, 0.4) for stage in stages for block in stage[::3] if block.join == "cat"]
    new: dict[nn.Module, nn.Module] = {}
    for block, ratio in chosen:
        if not block.norms:
            raise ModelError(
                f"place_ibn expects a norm among the convolutions of each block: got none in {block.name!r}; {_BY_HAND}"
            )
        norm, layer = _successor(model, f"{block.name}.{block.norms[0]}", f"ibn:ratio={ratio}")
        new.setdefault(norm, layer)
    return list(new.items())


def _variant_b(model: nn.Module, stages: list[list[Block]]) -> list[tuple[nn.Module, nn.Module]]:
    last = [stage[-1] for stage in stages]
    first = stages[0][0].name
    names = [name for name, module in model.named_modules() if name == first or is_norm(module)]
    new = [_successor(model, name, "instance") for name in names[: names.index(first)][:1]]
    for block in last:
        if block.join == "add":
            module = model.get_submodule(block.name)
            new.append((module, _with_norm(module, block)))
        else:
            new.append(_successor(model, _norm_behind(model, block), "instance"))
    return new


def _norm_behind(model: nn.Module, block: Block) -> str:
    """The norm that reads all a dense stage gave: in a DenseNet that of the transition, the next that the model holds outside of blocks."""
    names = [name for name, module in model.named_modules() if name == block.name or is_norm(module)]
    behind: list[str] = [name for name in names[names.index(block.name) + 1 :] if not name.startswith(f"{block.name}.")]
    in_blocks = tuple(f"{other.name}." for other in blocks(model))
    if not behind or behind[0].startswith(in_blocks):
        raise ModelError(f"place_ibn expects a norm between dense stages: got none behind {block.name!r}; {_BY_HAND}")
    return behind[0]


def _successor(model: nn.Module, name: str, method: str) -> tuple[nn.Module, nn.Module]:
    """The batch norm of that name, and what takes its place."""
    norm = model.get_submodule(name)
    try:
        source = recognise(norm)
        if source is None or source.method != "batch":
            raise NotUnderstoodError(f"it is {type(norm).__name__}; convert it to batch norm first")
        return norm, succeed(norm, source, method, None).layer
    except NotUnderstoodError as reason:
        raise ModelError(
            f"place_ibn expects batch norms where IBN-Net has its own: got {name!r}, but {reason}, or {_BY_HAND}"
        ) from None


def _with_norm(block: nn.Module, described: Block) -> fx.GraphModule:
    """The block with an instance norm behind its last addition."""
    graph = _own_graph(block)
    end = None if graph is None else addition(graph)
    if graph is None or end is None or described.channels is None:
        raise ModelError(
            f"place_ibn expects a block whose forward is the same in both modes and can be traced: got {described.name!r}; put an "
            "ns.InstanceNorm behind its addition by hand"
        )
    weight = next(p for p in block.parameters() if p.dim() > 1)
    norm = InstanceNorm(described.channels, affine=True, device=weight.device, dtype=weight.dtype)
    with graph.inserting_after(end):
        normalized = graph.call_module(AFTER_ADDITION, (end,))
    end.replace_all_uses_with(normalized, delete_user_cb=lambda user: user is not normalized)
    parts = dict([*block.named_modules(), *block.named_parameters(), *block.named_buffers(), (AFTER_ADDITION, norm)])
    used = {str(node.target) for node in graph.nodes if node.op in {"call_module", "get_attr"}}
    new = fx.GraphModule({name: parts[name] for name in used}, graph, type(block).__name__)
    new._modules = {key: new._modules[key] for key in (*block._modules, AFTER_ADDITION) if key in new._modules}
    norm.training = block.training
    if new.state_dict().keys() - {f"{AFTER_ADDITION}.weight", f"{AFTER_ADDITION}.bias"} != block.state_dict().keys():
        raise ModelError(f"place_ibn expects a block that uses all it holds: got {described.name!r}; {_BY_HAND}")
    new.training = block.training
    for hooks in HOOKS:
        getattr(new, hooks).update(getattr(block, hooks))
    return new


def _own_graph(block: nn.Module) -> fx.Graph | None:
    """What the block's own forward does, if it is the same in training and evaluation."""
    mode, found = block.training, []
    try:
        for block.training in (True, False):
            found.append(trace(block, shallow=True))
    finally:
        block.training = mode
    texts = {str(graph) for graph in found}
    return found[0] if len(texts) == 1 else None
