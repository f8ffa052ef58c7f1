"""Without a layer before it, group norm; chains are compared in tests/methods/test_chained.py."""

from oracles import group

VARIANTS = [{"affine": False}, {"num_groups": 3, "gain": 0.1}]


def forward(x, training, *, gain, max_ratio, detach_state, **rest):
    return group.forward(x, training, **rest)
