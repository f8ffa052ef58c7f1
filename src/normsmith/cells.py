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
    _, channels, positions = cells.shape
    _, channel_stride, position_stride = cells.stride()
    if not cells.is_contiguous() and _overlaps(cells):
        return "neither"
    if (position_stride == 1 and positions > 1) or (channels == 1 and positions == 1):
        return "rows"
    if channel_stride == 1 or channels == 1:
        return "columns"
    return "neither"


def _overlaps(cells: Tensor) -> bool:
    """Whether elements lie in one place, as in what was expanded or unfolded: so would those of an output laid out like it."""
    _, channels, positions = cells.shape
    if cells.stride() == (channels * positions, 1, channels):  # of all that are asked about, most
        return False
    extent = 1
    for stride, size in sorted(zip(cells.stride(), cells.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent += stride * (size - 1)
    return False


def statistics_of(cells: Tensor, shared: bool) -> tuple[int, int]:
    """The shape of a statistic of a cut tensor: (N, C), or (1, C) where all samples share it."""
    return (1 if shared else cells.shape[0], cells.shape[1])
