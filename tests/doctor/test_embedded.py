"""The examination without arguments: what is planted is found, and said."""

import pytest
import torch

import normsmith as ns
from normsmith.doctor import embedded

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def sick():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    found = embedded.patient()
    torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())
    return found


def test_every_fault_is_found_where_it_was_planted(sick):
    exam = ns.examine(sick.model, sick.loader)
    found = {finding.code: finding for finding in exam.at_least("warning")}
    assert set(found) == {fault.code for fault in sick.faults}
    for fault in sick.faults:
        assert fault.layer in found[fault.code].layers
    assert found["NS207"].layers == ("blocks.3.norm",)
    told = " ".join(sick.told(exam).split())
    assert "3 faults planted" in told
    assert f"right about {sick.accuracy():.0%} of the 512 digits" in told
    for fault in sick.faults:
        assert f"{fault.layer}: {fault.what}; found: {found[fault.code].severity} {fault.code}" in told


def test_the_cure_cures_and_what_is_not_found_is_said(sick):
    before = sick.accuracy()
    state = {name: t.clone() for name, t in sick.model.state_dict().items()}
    ns.recalibrate(sick.model, sick.loader)
    assert sick.accuracy() > max(before, 0.94)
    assert "blocks.1.norm: a momentum of 0.002, so that its running statistics hardly moved in training; not found" in " ".join(
        sick.told(ns.examine(sick.model, sick.loader)).split()
    )
    sick.model.load_state_dict(state)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ns.DependencyError, match=r"pip install 'normsmith\[data\]'"):
        embedded.patient()
