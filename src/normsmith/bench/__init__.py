"""Measuring: ours beside torch's own operator and the plain-torch oracle, interleaved in one process; on the CPU or on a GPU.

subjects.py  what is timed: shapes, layouts, modes, contestants
rivals.py    contestants from other packages, on GPUs
timing.py    interleaved rounds, medians of paired ratios
suite.py     the whole table, row by row
network.py   what a norm costs inside a small network
record.py    rows in a CSV file, with machine, versions and commit
tables.py    the same on a terminal
allocator.py the same allocator settings for every contestant
"""
