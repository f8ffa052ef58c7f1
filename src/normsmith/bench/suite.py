"""The whole table: every subject, one row each."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from normsmith.bench.subjects import MUST_MOVE, Subject, contestants
from normsmith.bench.timing import interleave, peak_bytes

NEEDED = {"ours", "batch", "copy"}  # without them there is no row


@dataclass(frozen=True)
class Row:
    """What was measured of one subject. Ratios are medians of paired rounds; None where there is no such contestant."""

    method: str
    shape: str
    layout: str
    mode: str
    backend: str
    ms: float
    batch_ms: float
    to_batch: float  # time as a multiple of torch's batch norm on the same data
    to_torch: float | None  # of torch's own operator for this method
    to_oracle: float | None  # of the formula in plain torch
    copy_share: float  # bytes that must move / time, as a share of the copy speed at this size
    extra_memory: float  # peak, in tensors of the size of x, output and gradients included


@dataclass(frozen=True)
class DeviceRow(Row):
    """The same on a GPU, with the contestants that there are only there."""

    dtype: str
    to_compiled: float | None  # time as a multiple of the formula under torch.compile
    to_apex: float | None
    to_liger: float | None
    to_timm: float | None


def measure(subject: Subject, rounds: int, oracles: Path | None, forced: str = "auto") -> Row:
    """Time one subject against its contestants."""
    runs = contestants(subject, oracles, forced)
    times = interleave(runs, rounds, device=subject.device, dispensable=runs.keys() - NEEDED)
    x = subject.example()

    def to(name: str) -> float | None:
        return times.ratio("ours", name) if name in times.seconds else None

    row = Row(
        subject.method,
        subject.shape_name,
        subject.layout,
        subject.mode,
        forced,
        ms=times.median("ours") * 1e3,
        batch_ms=times.median("batch") * 1e3,
        to_batch=times.ratio("ours", "batch"),
        to_torch=to("torch"),
        to_oracle=to("oracle"),
        copy_share=times.ratio("copy", "ours") * MUST_MOVE[subject.mode] / 2,
        extra_memory=peak_bytes(runs["ours"], subject.device) / (x.numel() * x.element_size()),
    )
    if subject.device == "cpu":
        return row
    return DeviceRow(
        **asdict(row),
        dtype=subject.dtype,
        to_compiled=to("compiled"),
        to_apex=to("apex"),
        to_liger=to("liger"),
        to_timm=to("timm"),
    )


def run(subjects: list[Subject], rounds: int, oracles: Path | None, forced: str = "auto") -> Iterator[Row]:
    """Measure one subject after the other; the rows come as they are done."""
    for subject in subjects:
        yield measure(subject, rounds, oracles, forced)
