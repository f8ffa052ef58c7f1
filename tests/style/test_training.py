"""The training: to the same bits whether interrupted or not, and what it makes is what it says."""

from io import StringIO

import pytest
import torch
from rich.console import Console
from style.helpers_style import folder, small

import normsmith as ns
from normsmith import data
from normsmith.errors import InputError, ModelError, OptionError, ResultsError
from normsmith.models import StyleEncoder, StyleTransfer
from normsmith.style import phases, training
from normsmith.style.pairs import Pairs
from normsmith.style.phases import DecoderPhase, EncoderPhase, Phase
from normsmith.style.settings import Settings


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("pictures") / "set")


def quiet():
    return Console(file=StringIO(), width=200)


def said(console):
    return console.file.getvalue()


def train(path, pictures, console=None, **changed):
    return training.train_style_transfer(path, settings=small(pictures, **changed), console=console or quiet())


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("phase", "at"), [("encoder", 5), ("decoder", 0), ("decoder", 4)])
def test_after_a_kill_it_goes_on_to_the_same_bits(tmp_path, pictures, monkeypatch, phase, at):
    whole = train(tmp_path / "whole.pt", pictures)
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    update = Phase.update

    def mortal(self, step, progress):
        if (self.name, step) == (phase, at):
            raise KilledError
        return update(self, step, progress)

    monkeypatch.setattr(Phase, "update", mortal)
    with pytest.raises(KilledError):
        train(tmp_path / "style.pt", pictures)
    assert [p.name for p in tmp_path.glob("style*")] == ["style.pt.part"]
    monkeypatch.setattr(Phase, "update", update)
    torch.rand(3)  # what others draw does not matter
    console = quiet()
    again = train(tmp_path / "style.pt", pictures, console)
    assert same(again, whole)
    assert again.about["decoder steps"] == 6
    assert (f"{phase}: going on at step {at}" in said(console)) == (at > 0)
    assert [p.name for p in tmp_path.glob("style*")] == ["style.pt"]
    assert same(StyleTransfer.load(tmp_path / "style.pt"), whole)


def test_the_seed_decides_and_the_global_state_is_left(tmp_path, pictures):
    before = torch.get_rng_state()
    one = train(tmp_path / "1.pt", pictures)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(train(tmp_path / "2.pt", pictures, seed=1), one)


def test_what_is_of_another_training_or_broken_is_not_gone_on_with(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(DecoderPhase, "measured", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "style.pt", pictures)
    monkeypatch.undo()
    console = quiet()
    other = train(tmp_path / "style.pt", pictures, console, seed=1)
    assert "style.pt.part is of a training with other settings: starting anew" in said(console)
    (tmp_path / "style.pt.part").write_bytes(b"words")
    console = quiet()
    assert same(train(tmp_path / "style.pt", pictures, console, seed=1), other)
    assert "cannot be read: starting anew" in said(console)


def test_the_encoder_is_the_classifier_without_its_norms(pictures):
    phase = EncoderPhase(data.load(str(pictures)), small(pictures))
    first = phase.update(0, 0.0)
    for step in range(1, 20):
        last = phase.update(step, 0.0)
    assert last < first
    phase.classifier.eval()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = phase.classifier.encoder(x)
        encoder = StyleEncoder((1, 1), width=4)
        encoder.load_state_dict(phase.result())
        for one, other in zip(encoder(x), before, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert phase.measured()["encoder accuracy"] > 0.5


def test_the_decoder_learns_and_the_encoder_stays(pictures, monkeypatch):
    monkeypatch.setattr(phases, "_WARM_UP", 1)
    encoder = StyleEncoder((1, 1), width=4)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    phase = DecoderPhase(encoder, Pairs([data.load(str(pictures)).train.inputs], 4, 16, 0), small(pictures, decoder_rate=1e-2))
    losses = [phase.update(0, 0.5) for _ in range(40)]  # the same pairs
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_what_a_step_makes_smaller(pictures):
    phase = DecoderPhase(
        StyleEncoder((1, 1), width=4), Pairs([data.load(str(pictures)).train.inputs], 4, 16, 0), small(pictures)
    )
    contents, styles = phase.pairs.at(3)
    drawn = phase.transfer.decoder(phase.transfer.encoder(contents)[-1])
    assert torch.equal(phase.loss(3, 0.29), (drawn - contents).square().mean()), "a rehearsal"
    losses = phase.transfer.losses(contents, styles)
    assert torch.equal(phase.loss(3, 0.31), losses.content + 10 * losses.style)


def test_an_encoder_that_is_given_is_kept(tmp_path, pictures):
    encoder = StyleEncoder((1,), width=4)
    model = training.train_style_transfer(tmp_path / "s.pt", encoder=encoder, settings=small(pictures), console=quiet())
    assert same(model.encoder, encoder)
    assert "encoder steps" not in model.about
    assert model.about["pictures"] == [str(pictures)]


def test_a_loss_that_is_no_number_ends_it(tmp_path, pictures):
    with pytest.raises(ModelError, match="the encoder is expected to learn: got a loss of nan at step"):
        train(tmp_path / "s.pt", pictures, encoder_rate=1e30)
    assert not list(tmp_path.iterdir())


def test_time_ends_it(tmp_path, pictures):
    model = train(tmp_path / "s.pt", pictures, encoder_steps=10**9, decoder_steps=10**9, minutes=0.02)
    assert 1 <= model.about["encoder steps"] < 10**6
    assert model.about["encoder seconds"] <= 2


def test_pairs_depend_on_seed_and_step_alone():
    pools = [torch.randint(0, 256, (3, 3, side, side + 9), dtype=torch.uint8) for side in (8, 12, 40)]
    pairs = Pairs(pools, 4, 12, 5)
    once, torch_state = pairs.at(3), torch.get_rng_state()
    again = Pairs(pools, 4, 12, 5).at(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    for one, other in zip(once, again, strict=True):
        assert one.shape == (4, 3, 12, 12)
        assert torch.equal(one, other)
        assert 0 <= float(one.min()) < float(one.max()) <= 1
    assert not torch.equal(pairs.at(4)[0], once[0])


def test_paintings_are_added_where_they_are_there(tmp_path, pictures):
    console = quiet()
    with_paintings = small(pictures).__class__(**{**vars(small(pictures)), "paintings": str(pictures)})
    model = training.train_style_transfer(tmp_path / "a.pt", settings=with_paintings, console=console)
    assert model.about["pictures"] == [str(pictures)] * 2
    without = small(pictures).__class__(**{**vars(small(pictures)), "paintings": "pacs"})
    model = training.train_style_transfer(tmp_path / "b.pt", root=tmp_path, settings=without, console=console)
    assert model.about["pictures"] == [str(pictures)]
    assert f"styles are pictures of {pictures} alone: pacs expects" in said(console)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"minutes": 0}, "minutes above zero: got 0"),
        ({"minutes": float("nan")}, "minutes above zero"),
        ({"decoder_steps": 0}, "decoder_steps as a positive integer: got 0"),
        ({"encoder_rate": -1.0}, "encoder_rate above zero"),
        ({"rehearsal": 1.0}, "rehearsal from 0 to below 1"),
        ({"crop": 8}, "crop of at least 9"),
        ({"encoder_share": 1.0}, "encoder_share between 0 and 1"),
    ],
)
def test_settings_that_cannot_work(options, sentence):
    with pytest.raises(OptionError, match=sentence):
        Settings(**options)


def test_grey_pictures_are_refused(tmp_path):
    pytest.importorskip("sklearn")
    with pytest.raises(InputError, match="got classification with 1 channels in 'digits'"):
        ns.train_style_transfer(tmp_path / "s.pt", settings=Settings(pictures="digits"))


def test_a_place_that_cannot_be_written(tmp_path, pictures):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="choose another place"):
        train(tmp_path / "file" / "s.pt", pictures)
