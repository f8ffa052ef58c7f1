"""When a gap is worth a warning, for those who warn of it and those who leave it to them."""

from normsmith.doctor.checks._gap import Gap, gap
from normsmith.doctor.checks.never_updated import is_new
from normsmith.doctor.observation import Layer

WARNING, ERROR = 0.3, 1.0


def too_far(layer: Layer) -> Gap | None:
    """The gap where it is; None where it is not, or where NS101 or NS103 say more."""
    if is_new(layer) or not all(bool(t.isfinite().all()) for t in layer.running()):
        return None
    size = gap(layer)
    return size if size.size > max(WARNING, 3 * size.chance) else None
