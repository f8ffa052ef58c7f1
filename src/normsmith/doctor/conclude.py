"""The end of an observation: what follows from the streams of each layer, once all data, of all ranks, have been seen."""

from torch import Tensor

from normsmith.doctor.cells import Cells, chosen
from normsmith.doctor.consistency import compare
from normsmith.doctor.moments import FourMoments
from normsmith.doctor.noise import noise_curves
from normsmith.doctor.observation import Layer, Observation
from normsmith.doctor.pictures import NONE, Pictures
from normsmith.doctor.samples import FIRES, Outlying, Sample, tops
from normsmith.doctor.shift import take_shifts
from normsmith.doctor.together import Company, join, labels_of_all, thumbnails_of_all


def conclude(seen: Observation, pictures: Pictures, company: Company) -> None:
    """Fill in consistency, noise, gap, shift and samples of every layer."""
    first = [layer for layer in seen.layers if layer.taken is not None]
    for layer, found in zip(first, compare([layer.taken for layer in first if layer.taken]), strict=True):
        layer.consistency, layer.taken = found, None
    join(seen, company)
    layers = [layer for layer in seen.layers if None not in (layer.profile, layer.cells, layer.outlying)]
    for layer in layers:
        if layer.profile is not None:
            layer.profile.close()
    for layer, curve in zip(layers, noise_curves([*map(_noise_of, layers)]), strict=True):
        layer.noise_curve = curve
    take_shifts(layers)
    top_of = dict(zip(layers, tops([*map(_outliers_of, layers)]), strict=True))
    wanted = {index for top in top_of.values() for index, _, _ in top}
    labels = labels_of_all(pictures, company, max(wanted, default=-1) + 1)
    known = bool((labels != NONE).any())
    thumbnails = thumbnails_of_all(pictures, company, wanted)
    for layer, top in top_of.items():
        assert layer.profile is not None
        assert layer.outlying is not None
        if top and top[0][2] > FIRES:
            layer.specificity = layer.outlying.specificity(layer.profile.moments, labels if known else None)
        layer.top_samples = tuple(
            Sample(index, None if int(labels[index]) == NONE else int(labels[index]), channel, score, thumbnails.get(index))
            for index, channel, score in top
        )


def _noise_of(layer: Layer) -> tuple[Cells, Tensor, int]:
    """What the noise of a layer follows from."""
    assert layer.profile is not None
    assert layer.cells is not None
    facts = layer.profile.moments.facts.cpu()[chosen(layer.profile.channels)]
    return layer.cells, FourMoments.of(facts).kurtosis, layer.positions


def _outliers_of(layer: Layer) -> tuple[Outlying, FourMoments]:
    """What its outliers are in, and what they lie far from."""
    assert layer.profile is not None
    assert layer.outlying is not None
    return layer.outlying, layer.profile.moments
