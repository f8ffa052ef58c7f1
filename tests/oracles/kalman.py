"""Without a layer before it, batch norm; chains are compared in tests/methods/test_chained.py."""

from oracles import batch

VARIANTS = [{"affine": False}, {"track_running_stats": False}, {"covariance": "full", "gain": 0.1}]


def forward(x, training, *, predictor, covariance, gain, max_ratio, detach_state, **rest):
    return batch.forward(x, training, **rest)
