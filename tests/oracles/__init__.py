"""One file a method, plain torch straight from the formula, importing nothing of normsmith: the truth of the tests and a baseline
of the benchmark.

    forward(x, training, *, <parameters>, <buffers>, <options>, <further inputs>) -> (y, new buffers)
    VARIANTS: options worth testing besides the defaults, for 12 channels
"""
