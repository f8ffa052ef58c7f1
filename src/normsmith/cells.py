"""How a tensor of any rank and memory format is cut into cells: one cell is one channel of one sample, S positions long.

A cut tensor is an ordinary view of shape (N, C, S). Its strides tell the layout the kernels work in:

- *rows*: the positions of a cell are adjacent (contiguous NCHW);
- *columns*: the channels of a position are adjacent (channels_last, tokens as (N, C));
- *neither*: anything else, say a transposed input. A kernel makes one copy of such a tensor for its own use.

Slices along samples or channels keep their layout: only the innermost stride counts.
"""

from typing import Literal

from torch import Tensor

Layout = Literal["rows", "columns", "neither"]


def cut(x: Tensor) -> Tensor:
    """`x` of shape (N, C, *spatial) as (N, C, S): a view wherever the spatial dimensions can be collapsed into one stride."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def layout(cells: Tensor) -> Layout:
    """The layout of a cut tensor. Where both would do (S = 1 or C = 1), the longer inner loop wins."""
    samples, channels, positions = cells.shape
    sample_stride, channel_stride, position_stride = cells.stride()
    if (
        (sample_stride == 0 and samples > 1)
        or (channel_stride == 0 and channels > 1)
        or (position_stride == 0 and positions > 1)
    ):
        return "neither"  # expanded: an output laid out like it would overlap itself
    if (position_stride == 1 and positions > 1) or (channels == 1 and positions == 1):
        return "rows"
    if channel_stride == 1 or channels == 1:
        return "columns"
    return "neither"


def statistics_of(cells: Tensor, shared: bool) -> tuple[int, int]:
    """The shape of a statistic of a cut tensor: (N, C), or (1, C) where all samples share it."""
    return (1 if shared else cells.shape[0], cells.shape[1])
