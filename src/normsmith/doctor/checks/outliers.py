"""NS301: far more outliers than a Gaussian has. For information: they are in the statistics, and may be what a channel is for.

Found where one element in a thousand of a channel lies further than 5 deviations from its mean, of a Gaussian it is one in 1.7 million (and
Chebyshev allows one in 25). Counts come from histograms, with bounds; the lower one decides. In evidence also the sample furthest out, and
what the tails with an outlier fire for (`samples.py`): one sample, samples of one class, or any. And by how much filtering brings the
variance of small batches closer to that of the large one (`consistency.py`): below 1, it helps.
"""

from collections.abc import Iterator

from normsmith.doctor.exceedances import exceedances
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Layer, Observation

DEVIATIONS, SHARE = 5.0, 1e-3


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found: dict[str, dict[str, float | str]] = {}
    for layer in seen.layers:
        if layer.profile is None:
            continue
        beyond = exceedances(layer.profile, (DEVIATIONS,))
        least = (beyond.low / beyond.total.clamp_min(1)).flatten()
        many = least > SHARE
        if bool(many.any()):
            worst = int(least.argmax())
            found[layer.name] = {
                "channels": float(many.sum()),
                "of": float(many.numel()),
                "worst channel": float(worst),
                "share beyond 5": float(beyond.fraction[worst]),
                "excess kurtosis": float(layer.profile.moments.kurtosis[worst]),
                **_origins(layer),
            }
    if found:
        yield Finding(
            "NS301",
            "outliers in the statistics",
            "info",
            tuple(sorted(found, key=lambda name: -float(found[name]["share beyond 5"]))),
            found,
            "In these channels far more values lie beyond five deviations than Gaussian data would have. They pull mean and variance of a "
            "batch about; where batches are small that is noise. Filtered norm leaves them out of the statistics, not out of the output.",
            'ns.convert(model, "filtered")',
            ("arXiv 2010.08251",),
        )


def _origins(layer: Layer) -> dict[str, float | str]:
    """Where the outliers are from."""
    found: dict[str, float | str] = {}
    if layer.top_samples:
        first = layer.top_samples[0]
        label = "" if first.label is None else f" of class {first.label}"
        found["furthest sample"] = f"{first.index}{label}: {first.score:.1f}"
    if layer.specificity is not None:
        kinds = layer.specificity
        found |= {"one sample": kinds.one_sample, "one class": kinds.one_class, "general": kinds.general}
    if layer.consistency is not None and layer.consistency.plain.var > 0:
        found["filtered / plain"] = layer.consistency.filtered.var / layer.consistency.plain.var
    return found
