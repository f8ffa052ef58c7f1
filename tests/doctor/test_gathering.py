import torch
from ranks import run_ranks

from normsmith import world
from normsmith.doctor.gathering import gather
from normsmith.doctor.moments import FourMoments
from normsmith.doctor.profile import Profile
from normsmith.doctor.topk import TopK


def data():
    return torch.randn(24, 3, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def streams_of(x, samples):
    streams = [FourMoments(3), Profile(3), TopK(3, 4)]
    for part, indices in zip(x.split(6), samples.split(6), strict=True):
        streams[0].add(part)
        high = streams[1].add(part).high
        streams[2].add(high, indices)
    return streams


def on_a_rank(rank, shares):
    begin = sum(shares[:rank])
    chosen = slice(begin, begin + shares[rank])
    x, samples = data()[chosen], torch.arange(24)[chosen]
    counted = []
    original = world._all_gather

    def counting(*arguments, **options):
        counted.append(1)
        return original(*arguments, **options)

    world._all_gather = counting
    moments, profile, top = gather(streams_of(x, samples))
    return moments.state(), profile.state(), top.state(), len(counted)


def test_ranks_together_have_seen_everything():
    moments, profile, top = streams_of(data(), torch.arange(24))
    for shares in ([12, 12], [7, 17], [24, 0]):
        first, second = run_ranks(2, on_a_rank, shares)
        for one, two in zip(first[:3], second[:3], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        facts, tallies, kept, collectives = first
        assert collectives == 1
        assert torch.allclose(facts[0], moments.facts, rtol=1e-12, atol=1e-12)
        assert torch.equal(kept[0], top.keys)
        merged = Profile(3).restored(tallies)
        assert merged.tallies.sum() == 720
        (_, low, high), exact = merged.quantiles(), data().transpose(0, 1).flatten(1).sort(1).values
        for k, fraction in enumerate((0.01, 0.25, 0.5, 0.75, 0.99)):
            assert (low[:, k] <= exact[:, int(fraction * 239)]).all()
            assert (exact[:, int(fraction * 239)] <= high[:, k]).all()
        assert torch.equal(profile.moments.count, merged.moments.count)


def test_alone():
    streams = streams_of(data(), torch.arange(24))
    assert gather(streams) == streams
    assert gather([]) == []
