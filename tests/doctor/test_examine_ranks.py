"""Every rank examines its own data, and gets the examination of all."""

import pytest
import torch
import torch.distributed as dist
from doctor.test_examine import batches, healthy
from ranks import run_ranks

import normsmith as ns


def data():
    found = batches(6, 8)
    found[4][0][3, 1, 2, 2] = 500.0  # sample 35
    return found


def model():
    torch.manual_seed(0)
    return healthy(data=batches(seed=1))


def dealt(rank, shares):
    """Samples as a DistributedSampler deals them where they are equal; else a part of the batches."""
    if shares == "dealt":
        x, y = (torch.cat(parts)[rank::2] for parts in zip(*data(), strict=True))
        return list(zip(x.split(8), y.split(8), strict=True))
    begin = sum(shares[:rank])
    return data()[begin : begin + shares[rank]]


def on_a_rank(rank, net):
    found = []
    for shares in ("dealt", [5, 1], [6, 0]):
        exam = ns.examine(net, dealt(rank, shares))
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in exam.table]
        found.append((exam.batches, exam.samples, rows, exam.details, exam.missing, str(exam)))

    def broken():
        yield data()[rank]
        if rank:
            raise OSError("no such file")
        yield data()[2]

    exam = ns.examine(net, broken())
    alone = ns.examine(net, data()[:2], process_group=[dist.new_group([r]) for r in range(2)][rank])
    try:
        ns.examine(net, [])
    except ns.InputError as error:
        nothing = str(error)
    return found, (exam.batches, exam.missing), alone.batches, nothing


def test_all_ranks_see_what_one_process_would():
    net = model()
    whole = ns.examine(net, data())
    one, two = run_ranks(2, on_a_rank, net)
    for (first, second), dealt_out in zip(zip(one[0], two[0], strict=True), (True, False, False), strict=True):
        assert first[:3] == second[:3], "the same on each"
        assert (first[0], first[1]) == (6, 48)
        for row, details, expected, more in zip(first[2], first[3], whole.table, whole.details, strict=True):
            for key in ("gap", "largest input", "excess kurtosis", "largest score", "shift"):
                assert row[key] == pytest.approx(expected[key], rel=1e-5), key
            top = details["top samples"][0]
            if dealt_out:
                assert {k: top[k] for k in ("index", "label", "channel")} == {
                    k: more["top samples"][0][k] for k in ("index", "label", "channel")
                }
            else:
                assert top["label"] == more["top samples"][0]["label"]
                assert row["noise"] == pytest.approx(expected["noise"], rel=1e-5), "the same batches"
    (number, missing) = one[1]
    assert number == 3
    assert missing[0] == "rank 1: batches from 1 on: the loader raised OSError: no such file"
    assert (one[2], two[2]) == (2, 2)
    assert "at least one batch" in one[3]
