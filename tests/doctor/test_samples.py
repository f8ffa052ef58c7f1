"""Which samples hold the outliers: by brute force, with labels and pictures, and whether a channel is for one class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normsmith as ns
from normsmith.doctor._describe import Extremes
from normsmith.doctor.moments import FourMoments
from normsmith.doctor.observe import observe
from normsmith.doctor.pictures import HELD, NONE, SIDE, Pictures, labels_of, size_of, thumbnails
from normsmith.doctor.profile import Profile
from normsmith.doctor.samples import FLOOR, KEPT, Outlying


def looked_at(parts):
    profile, outlying = Profile(parts[0].shape[1]), Outlying(parts[0].shape[1])
    start = 0
    for x in parts:
        outlying.look(profile.add(x), torch.arange(start, start + len(x)), profile.moments)
        start += len(x)
    return profile, outlying


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_the_furthest_by_brute_force(seed, channels):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, channels, 5, generator=generator)
    x[torch.rand(x.shape, generator=generator) < 0.02] *= 12
    profile, outlying = looked_at(x.split(20))
    z = (x.double() - profile.moments.mean.view(-1, 1)) / profile.moments.std.view(-1, 1)
    floor = x[:20].double()
    center, unit = floor.mean((0, 2)).view(-1, 1), floor.std((0, 2), unbiased=False).view(-1, 1)
    far = torch.where((x - center).abs() / unit > FLOOR, z.abs(), 0).amax(2)
    best = far.amax(1)
    found = outlying.top(profile.moments)
    expected = best.sort(descending=True).values[:8]
    assert [score for _, _, score in found] == pytest.approx([s for s in expected.tolist() if s > 0], rel=1e-5)
    for index, channel, score in found:
        assert float(far[index, channel]) == pytest.approx(score, rel=1e-5)
    assert len({index for index, _, _ in found}) == len(found)


def test_data_without_outliers_have_no_samples():
    profile, outlying = looked_at(list(torch.rand(40, 3, 4).split(10)))
    assert outlying.top(profile.moments) == []
    constant, nothing = looked_at([torch.ones(8, 2, 3)] * 2)
    assert nothing.top(constant.moments) == []


def test_what_is_not_finite_is_no_sample():
    x = torch.randn(32, 2, 16)
    x[3, 0, 0], x[4, 1, 1], x[5, 1, 2], x[6, 0, 0] = torch.inf, torch.nan, -torch.inf, 30.0
    profile, outlying = looked_at(list(x.split(8)))
    found = outlying.top(profile.moments)
    assert found[0][:2] == (6, 0)
    assert not {3, 4, 5} & {index for index, _, score in found if score > 10}


def test_streams_merge():
    x = torch.randn(64, 3, 10)
    x[5, 1, 0], x[40, 2, 3], x[50, 0, 1] = 25.0, -30.0, 20.0
    whole = looked_at(list(x.split(16)))
    (one, first), (two, second) = looked_at(list(x[:32].split(16))), looked_at(list(x[32:].split(16)))
    second.keys = torch.where(second.samples >= 0, second.keys - 32, second.keys)  # numbers 32 higher
    merged = first.merge(second)
    moments = one.moments.merge(two.moments)
    expected = whole[1].top(whole[0].moments)
    assert [(i, c) for i, c, _ in merged.top(moments)][:3] == [(i, c) for i, c, _ in expected][:3] == [(40, 2), (5, 1), (50, 0)]


# --- specific and general channels ----------------------------------------------------------------------------------------------


def tails(kind):
    torch.manual_seed(0)
    labels = torch.arange(400) % 10
    x = torch.randn(400, 2, 16).clamp(-3, 3)
    chosen = {"class": labels == 3, "sample": torch.arange(400) == 77, "general": torch.arange(400) % 7 == 0}[kind]
    x[chosen, 1, 0] = 15.0
    profile, outlying = looked_at(list(x.split(50)))
    return outlying.specificity(profile.moments, labels), outlying.specificity(profile.moments, None)


@pytest.mark.parametrize(("kind", "expected"), [("class", (0, 1, 0)), ("sample", (1, 0, 0)), ("general", (0, 0, 1))])
def test_specific_channels(kind, expected):
    known, unknown = tails(kind)
    assert (known.one_sample, known.one_class, known.general) == expected
    assert (unknown.one_sample, unknown.one_class) == (expected[0], 0), "without labels nobody knows of classes"


def test_a_class_that_is_nearly_everything_is_not_specific():
    labels = torch.zeros(100, dtype=torch.long)
    labels[:10] = 1
    x = torch.randn(100, 1, 16).clamp(-3, 3)
    x[20:40, 0, 0] = 15.0
    profile, outlying = looked_at([x])
    assert outlying.specificity(profile.moments, labels).one_class == 0


def test_half_of_the_samples_are_no_majority():
    labels = torch.arange(400) % 100
    x = torch.randn(400, 1, 16).clamp(-3, 3)
    x[labels == 3, 0, 0] = 15.0  # four samples of a rare class, which is no chance
    x[[10, 21, 32, 43], 0, 0] = 15.0
    profile, outlying = looked_at(list(x.split(50)))
    found = outlying.specificity(profile.moments, labels)
    assert (found.one_class, found.general) == (0, 1)


# --- labels and pictures --------------------------------------------------------------------------------------------------------


def test_labels():
    y = torch.tensor([3, 1])
    x = torch.zeros(2, 3, 4, 4)
    for batch in ((x, y), [x, y], {"pixel_values": x, "labels": y}, (x, y.to(torch.uint8))):
        assert labels_of(batch, 2).tolist() == [3, 1]
    for batch in (x, (x,), (x, y.float()), (x, 3), {"x": x}, (x, torch.zeros(2, 4, dtype=torch.long))):
        assert labels_of(batch, 2) is None
    assert [size_of(b) for b in (x, (x, y), {"ids": y}, 3, [])] == [2, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("shape", "small"), [((2, 3, 96, 48), (48, 24)), ((2, 1, 10, 20), (10, 20)), ((2, 3, 500, 3), (46, 1))]
)
def test_thumbnails(shape, small):
    images = torch.rand(shape) * 5 - 2
    images[0, 0, 0, 0] = torch.nan
    found = thumbnails(images)
    assert found.shape == (2, shape[1], *small)
    assert max(found.shape[2:]) <= SIDE
    assert found.dtype == torch.uint8
    assert (int(found[1].min()), int(found[1].max())) == (0, 255)


def test_pictures_of_no_interest_are_dropped():
    pictures = Pictures()
    for start in range(0, 1200, 100):
        images = torch.zeros(100, 1, 4, 4)
        images[:, 0, 0, 0] = torch.arange(start, start + 100) % 7 + 1
        pictures.add((images, torch.arange(100)), 100, lambda: {5, 250, 1150})
    assert {5, 250, 1150} <= pictures.thumbnails.keys()
    assert len(pictures.thumbnails) <= HELD + 100
    assert pictures.labels.tolist() == list(range(100)) * 12
    pictures.add(torch.zeros(3, 8), 3, set)
    assert pictures.labels[-3:].tolist() == [NONE] * 3


def test_samples_in_an_examination():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3))
    data = [(torch.randn(16, 3, 96, 96), torch.randint(0, 5, (16,))) for _ in range(3)]
    data[1][0][7, 2, 10:14, 10:14] = 60.0
    ns.recalibrate(model, data)
    seen = observe(model, data)
    first = seen.layers[0].top_samples[0]
    assert (first.index, first.channel, first.label) == (23, 2, int(data[1][1][7]))
    assert first.score == pytest.approx(
        (60 - float(seen.layers[0].moments.mean[0, 2])) / float(seen.layers[0].moments.var[0, 2]) ** 0.5
    )
    assert first.thumbnail.shape == (3, 48, 48)
    assert int(first.thumbnail.float().argmax()) // (48 * 48) == 2
    exam = ns.examine(model, data)
    row = exam.to_dict()["layers"][0]
    assert (row["top samples"][0]["index"], row["largest score"]) == (23, first.score)
    assert len(row["noise curve"]) == 9


def test_the_evidence_of_outliers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2))
    y = torch.arange(320) % 8
    x = torch.randn(320, 2, 6, 6).clamp(-3, 3)
    x[y == 5, 1, 0, :2] = 40.0
    data = list(zip(x.split(32), y.split(32), strict=True))
    ns.recalibrate(model, data)
    (found,) = (f for f in ns.examine(model, data).findings if f.code == "NS301")
    evidence = found.evidence["0"]
    assert (evidence["one sample"], evidence["one class"], evidence["general"]) == (0, 1, 0)
    assert "of class 5" in evidence["furthest sample"]
    assert evidence["filtered / plain"] < 1


def test_rows_that_are_not_samples():
    """Tokens flattened with their samples are found by the sample; rows that belong to nobody are left out."""

    class Flat(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.norm, self.rows = nn.BatchNorm1d(4), rows

        def forward(self, x):
            return self.norm(x.flatten(0, 1)[: self.rows])

    x = torch.randn(8, 5, 4)
    x[6, 3, 2] = 200.0
    assert observe(Flat(None), [x, x * 0.5]).layers[0].top_samples[0].index == 6
    assert observe(Flat(37), [x, x * 0.5]).layers[0].top_samples == ()
    assert KEPT >= 4


def test_an_infinity_does_not_hide_the_outlier_beside_it():
    stream, moments = Outlying(400), FourMoments(400)
    moments.add(torch.randn(64, 400, 4, generator=torch.Generator().manual_seed(0)))
    stream.begin(moments)
    low, high = torch.zeros(4, 400), torch.zeros(4, 400)
    high[0, 100:] = 8.0
    high[1, 7], high[2, 7] = torch.inf, 31.0
    stream.look(Extremes(low, high), torch.arange(4), moments)
    assert stream.top(moments)[0][:2] == (2, 7)


def test_two_infinities_do_not_either():
    channels = 200
    stream, moments = Outlying(channels), FourMoments(channels)
    moments.add(torch.randn(64, channels, 4, generator=torch.Generator().manual_seed(0)))
    stream.begin(moments)
    low, high = torch.zeros(6, channels), torch.zeros(6, channels)
    high[4], high[4, 7] = 8.0, 0.0
    high[0, 7], high[1, 7], high[2, 7] = torch.inf, torch.inf, 31.0
    stream.look(Extremes(low, high), torch.arange(6), moments)
    assert stream.top(moments)[0][:2] == (2, 7)


def test_no_sample_is_lost_behind_the_higher_floor_of_another_rank():
    """A place that only elements beyond the floor take may stand before a sample, once rows of two ranks are merged."""
    channels = 256
    generator = torch.Generator().manual_seed(0)

    def ranks(batches, number):
        moments, outlying = FourMoments(channels), Outlying(channels)
        for x in batches:
            outlying.look(moments.add(x), torch.arange(number, number + len(x)), moments)
            number += len(x)
        return moments, outlying

    wide, narrow, far = (torch.randn(8, channels, 16, generator=generator) for _ in range(3))
    rest = [torch.randn(16, channels, 64, generator=generator) for _ in range(4)]
    wide[:, 200] *= 10
    far[3, 200, 5] = 30.0
    one, other = ranks([wide, *rest], 0), ranks([narrow, far, *rest], 10_000)
    sample, channel, _ = one[1].merge(other[1]).top(one[0].merge(other[0]))[0]
    assert (sample, channel) == (10_011, 200)
