"""Which normalizer a model should have, by measurement: `Examination.recommend`.

constraints.py     what has to hold: the batch size, independence of the batch, a limit to the time
pool.py            samples of the data, cut into batches of any size
trial.py           one candidate on a copy of the model: converted, trained, recalibrated, measured
ranking.py         scores with intervals, and which of them can be told apart
recommendation.py  the result, as a table and as data
recommend.py       all of it
"""
