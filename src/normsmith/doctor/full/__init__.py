"""The closer look of `depth="full"`: what needs a loss, gradients, or many forwards. Each part stops when the time is up.

look.py       all parts, in order, within a budget
clock.py      what a forward and a backward take, what is left, what to expect
closer.py     what was found, by layer and for the model
modes.py      normalizers by the batch while everything else is in evaluation, and nothing moves
swaps.py      the loss with one layer's statistics swapped
slopes.py     gradients on both sides of every normalizer, and the strength of gamma decay
curvature.py  Fisher blocks, smoothness along the gradient, internal covariate shift
"""
