"""What normalizers are called in results; apart, since who only reads results needs neither data sets nor models."""

NONE = "none"  # no normalizer at all


def label_of(normalizer: str | dict[str, str | None]) -> str:
    """How a normalizer is called in results."""
    if isinstance(normalizer, str):
        return normalizer
    return ", ".join(f"{part}={method or 'as it is'}" for part, method in normalizer.items())


def spoken(label: str) -> str:
    """How a normalizer is called in a sentence, where "none" would say something else."""
    return "the bare network" if label == NONE else label
