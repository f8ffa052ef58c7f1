"""What normalizers are called in results; apart, since who only reads results needs neither data sets nor models."""

NONE = "none"  # no normalizer at all


def label_of(normalizer: str | dict[str, str | None], *others: str | None) -> str:
    """How a normalizer is called in results, with what else is done to weights and gradients."""
    if not isinstance(normalizer, str):
        normalizer = ", ".join(f"{part}={method or 'as it is'}" for part, method in normalizer.items())
    return " + ".join([normalizer, *(other for other in others if other and other != NONE)])


def spoken(label: str) -> str:
    """How a normalizer is called in a sentence, where "none" would say something else."""
    return f"the bare network{label.removeprefix(NONE)}" if label == NONE or label.startswith(f"{NONE} + ") else label
