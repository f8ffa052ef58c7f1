"""Layers that whiten what they read or write, so that plain gradient steps on their weights come near natural-gradient steps.

`ns.reparametrize` puts them in the place of linear and convolutional layers. All of them are plain layers whose weight and bias are
functions of what is trained: W = R V U and b = R d - W c, with V and d trained, and U, c, R constants that a refresh chooses anew. What a
zero-padded convolution computes is then the same to the border: its input is padded first, then centred and whitened, then convolved.
"""
