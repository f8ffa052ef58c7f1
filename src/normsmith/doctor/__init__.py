"""What is wrong with a model's normalization: observe, find, explain, name the cure.

Streaming statistics, without hooks or modules: they take tensors of shape (N, C, *spatial), need memory for the channels alone, and
those of several batches, workers or ranks merge into those of all.

    moments.py      FourMoments: count, mean, variance, skewness, kurtosis, extremes of every channel
    profile.py      Profile: the same and a histogram on a grid of its own for every channel; quantiles, tails, one histogram a layer
    grid.py         the bins of such a histogram
    exceedances.py  how many elements lie beyond t standard deviations, and how many of a Gaussian would
    normality.py    tests of Gaussianity, with sizes of effect
    topk.py         TopK: the samples with the largest scores of every channel
    gathering.py    streams of all ranks, in one collective
    calls.py        what each call alone had
    cells.py        mean and variance of some single samples
    noise.py        the noise of batch statistics by batch size
    samples.py      which samples hold the outliers, and what channels are specific to; pictures.py their labels and pictures
    consistency.py  statistics of small batches against those of a large one
    shift.py        the distance of the data from the running statistics
    mixing.py       whether the output for a sample depends on other samples or on padding
    observe.py      the pass over the data: hooks.py, together.py (ranks), conclude.py; observation.py is what comes of it
    record.py       the numbers of a layer as plain data
    _describe.py    the pass over a tensor: the kernel on the CPU, plain torch elsewhere

Of models:

    observe.py      hooks that feed these streams; observation.py: what they saw, layer by layer
    checks/         a room for each finding
    full/           the closer look: loss by layer swaps, gradients, curvature, within a budget
    examine.py      all of it; examination.py: the result
    recommend/      candidates, measured on copies of the model
    subject.py      a model with its data and its loss, for what runs it again
    embedded.py     a net with planted faults; session.py: the command
"""
