"""Which modules of a model are its residual or dense blocks, found by what their forward does with its input, not by their names."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from normsmith.surgery._source import is_norm

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_CATS = (torch.cat, torch.concat, torch.concatenate)


@dataclass(frozen=True)
class Block:
    """A block and where it stands."""

    name: str
    parent: str  # the module that holds it: blocks with the same parent are a stage
    join: Literal["add", "cat"]
    norms: tuple[str, ...]  # those of the branch with the convolutions, in the order in which they run
    channels: int | None  # of what that branch gives


class _Tracer(fx.Tracer):
    """Follows a forward into the modules it calls, or, shallow, not."""

    def __init__(self, shallow: bool = True) -> None:
        super().__init__()
        self.shallow = shallow

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = self.shallow or is_norm(m) or not any(True for _ in m.children())
        return whole or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module, *, shallow: bool) -> fx.Graph | None:
    """The graph of a module's forward, or None where it depends on more than the modules it calls."""
    try:
        return _Tracer(shallow).trace(module)
    except Exception:  # noqa: BLE001  (what a forward does with a stand-in for a tensor can fail in any way)
        return None


def addition(graph: fx.Graph) -> fx.Node | None:
    """The last addition of two things made of the same input."""
    return next((node for node in reversed(graph.nodes) if _joins(node, "add")), None)


def blocks(model: nn.Module) -> list[Block]:
    """The outermost residual and dense blocks inside a model, in the order in which it holds them."""
    return list(_inside(model, model, ""))


def _inside(model: nn.Module, module: nn.Module, name: str) -> Iterator[Block]:
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if not _composite(child):
            continue
        own = None if type(child) in {nn.Sequential, nn.ModuleList, nn.ModuleDict} else trace(child, shallow=True)
        join: Literal["add", "cat"] | None = None
        if own is not None:
            join = "add" if addition(own) else "cat" if any(_joins(node, "cat") for node in own.nodes) else None
        layers = _layers(child, own) if own is not None and join == "cat" else []
        if len(layers) > 1:  # a stage that concatenates what its layers give
            for layer in layers:
                yield _described(child.get_submodule(layer), f"{path}.{layer}", path, "cat")
        elif join is not None:
            yield _described(child, path, name, join)
        else:
            yield from _inside(model, child, path)


def _composite(module: nn.Module) -> bool:
    kinds = list(module.modules())
    return any(isinstance(m, _ConvNd) for m in kinds) and any(is_norm(m) for m in kinds) and len(kinds) > 1


def _layers(module: nn.Module, graph: fx.Graph) -> list[str]:
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    return [name for name in called if isinstance(name, str) and _composite(module.get_submodule(name))]


def _described(block: nn.Module, name: str, parent: str, join: Literal["add", "cat"]) -> Block:
    """The block with the norms of its main branch; none of them known if its forward cannot be followed."""
    graph = trace(block, shallow=False)
    end = None if graph is None else addition(graph) if join == "add" else _output(graph)
    if graph is None or end is None:
        return Block(name, parent, join, (), None)
    branches = [_before(node) | {node} for node in _inputs(end)]
    main = max(branches, key=lambda nodes: len(_modules(block, nodes, _ConvNd)))
    ordered = [node for node in graph.nodes if node in main]
    norms = tuple(str(node.target) for node in ordered if node.op == "call_module" and is_norm(_target(block, node)))
    sizes = [conv.out_channels for conv in _modules(block, ordered, _ConvNd) if conv.out_channels > 1]  # 1: attention's
    return Block(name, parent, join, norms, sizes[-1] if sizes else None)


def _output(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return node


def _modules(block: nn.Module, nodes: Any, kind: type[Any]) -> list[Any]:
    found = [_target(block, node) for node in nodes if node.op == "call_module"]
    return [module for module in found if isinstance(module, kind)]


def _target(block: nn.Module, node: fx.Node) -> nn.Module:
    return block.get_submodule(str(node.target))


def _inputs(node: fx.Node) -> list[fx.Node]:
    return list(node.all_input_nodes)


def _before(node: fx.Node) -> set[fx.Node]:
    """All nodes that a node is made of."""
    found: set[fx.Node] = set()
    waiting = _inputs(node)
    while waiting:
        found.add(waiting.pop())
        waiting = [n for f in found for n in f.all_input_nodes if n not in found]
    return found


def _joins(node: fx.Node, how: Literal["add", "cat"]) -> bool:
    """Whether a node adds or concatenates several things that are made of the same input."""
    if node.op not in {"call_function", "call_method"} or node.target not in (_ADDS if how == "add" else _CATS):
        return False
    inputs = _inputs(node)
    sources = [{n for n in _before(i) | {i} if n.op == "placeholder"} for i in inputs]
    return len(inputs) > 1 and bool(set.intersection(*sources))
