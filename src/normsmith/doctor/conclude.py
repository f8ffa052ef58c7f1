"""The end of an observation: what follows from the streams of each layer, once all data, of all ranks, have been seen."""

from normsmith.doctor.cells import chosen
from normsmith.doctor.noise import noise_curve
from normsmith.doctor.observation import Layer, Observation
from normsmith.doctor.pictures import NONE, Pictures
from normsmith.doctor.samples import FIRES, Sample
from normsmith.doctor.shift import shift
from normsmith.doctor.together import Company, join, labels_of_all, thumbnails_of_all

Top = list[tuple[int, int, float]]


def conclude(seen: Observation, pictures: Pictures, company: Company) -> None:
    """Fill in noise, shift and samples of every layer."""
    join(seen, company)
    tops: dict[Layer, Top] = {}
    for layer in seen.layers:
        if layer.profile is None or layer.cells is None or layer.outlying is None:
            continue
        moments = layer.profile.moments
        kurtosis = moments.kurtosis[chosen(layer.profile.channels)].cpu()
        layer.noise_curve = noise_curve(layer.cells, kurtosis, layer.positions)
        layer.shift = shift(layer, sum(layer.samples))
        tops[layer] = layer.outlying.top(moments)
    wanted = {index for top in tops.values() for index, _, _ in top}
    labels = labels_of_all(pictures, company, max(wanted, default=-1) + 1)
    known = bool((labels != NONE).any())
    thumbnails = thumbnails_of_all(pictures, company, wanted)
    for layer, top in tops.items():
        assert layer.profile is not None
        assert layer.outlying is not None
        if top and top[0][2] > FIRES:
            layer.specificity = layer.outlying.specificity(layer.profile.moments, labels if known else None)
        layer.top_samples = tuple(
            Sample(index, None if int(labels[index]) == NONE else int(labels[index]), channel, score, thumbnails.get(index))
            for index, channel, score in top
        )
