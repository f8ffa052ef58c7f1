"""AdaMatch: every formula against one written out here, a step as a whole, checkpoints, recipes, a comparison."""

import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import nn
from trials.helpers_trials import records, trials
from trials.test_training import stop_after_an_epoch, values

import normsmith as ns
from normsmith import data
from normsmith.data.augment import parse
from normsmith.errors import OptionError
from normsmith.surgery.conditioned import conditions_of
from normsmith.trials.algorithms import begin, kind_of
from normsmith.trials.algorithms.adamatch import AdaMatch, augmentations
from normsmith.trials.algorithms.matching import Alignment, aligned, interpolated, rise, source_loss, target_loss
from normsmith.trials.build import build, try_on
from normsmith.trials.engines import Errand
from normsmith.trials.engines.ranks import RanksEngine
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial, plan
from normsmith.trials.recipe import json_schema, read
from normsmith.trials.share import ALONE, Share
from normsmith.trials.sweep import refuse_impossible
from normsmith.trials.trial import run_trial

PAIR = "digits:train=60,test=50 -> digits:train=190,test=40"
SMALL = {"datasets": [PAIR], "models": ["mlp_relu"], "normalizers": ["batch"], "batch_sizes": [10], "algorithm": "adamatch"}


def matched(**changes) -> list[Trial]:
    return trials(**{**SMALL, "epochs": 2, **changes})


def learning(trial: Trial, model: nn.Module | None = None) -> tuple[AdaMatch, nn.Module]:
    algorithm = begin(trial, None, ALONE)
    return algorithm, (build(trial, algorithm.sets[0]) if model is None else model).train()


def probabilities(rows, classes=5, seed=0):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)).double().softmax(1)


class TestFormulas:
    def test_alignment(self):
        p, source, target = probabilities(7), probabilities(1, seed=1)[0], probabilities(1, seed=2)[0]
        q = aligned(p, source, target)
        for row, got in zip(p.tolist(), q.tolist(), strict=True):
            raw = [v * (1e-6 + s) / (1e-6 + t) for v, s, t in zip(row, source.tolist(), target.tolist(), strict=True)]
            assert got == pytest.approx([v / sum(raw) for v in raw], rel=1e-12)
        torch.testing.assert_close(q.sum(1), torch.ones(7).double())
        torch.testing.assert_close(aligned(p, source, source), p, msg="the identity where both domains have the same classes")

    def test_alignment_is_of_each_class_by_itself(self):
        """Not of one average over the classes, as a version in circulation has it, which changes nothing."""
        q = aligned(torch.full((1, 2), 0.5), torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5]))
        torch.testing.assert_close(q, torch.tensor([[0.9, 0.1]]), atol=1e-5, rtol=0)

    def test_averages(self):
        alignment, source, seen = Alignment(3, 0.9, 4), np.full(3, 1 / 3), [np.full(3, 1 / 3)] * 4
        for i in range(6):
            mean, other = probabilities(1, 3, seed=i)[0].float(), probabilities(1, 3, seed=i + 50)[0].float()
            alignment.update(mean, other)
            source = 0.9 * source + 0.1 * mean.numpy()
            seen = [*seen[1:], other.numpy()]
            np.testing.assert_allclose(alignment.source.numpy(), source, rtol=1e-5)
            np.testing.assert_allclose(alignment.target.numpy(), np.mean(seen, 0), rtol=1e-5)
        other = Alignment(3, 0.9, 4)
        other.load(alignment.state())
        other.update(mean, mean)
        alignment.update(mean, mean)
        assert torch.equal(other.source, alignment.source)
        assert torch.equal(other.recent, alignment.recent)

    def test_interpolation(self):
        together, alone, shares = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 3)
        found = interpolated(together, alone, shares)
        for i, j in ((0, 0), (3, 2), (1, 2)):
            assert float(found[i, j]) == pytest.approx(float(shares[i, j] * together[i, j] + (1 - shares[i, j]) * alone[i, j]))
        torch.testing.assert_close(interpolated(together, alone, torch.ones(4, 3)), together, rtol=0, atol=0)

    def test_the_weight_of_the_target_rises_from_0_to_1_in_the_first_half(self):
        assert rise(0.0) == 0
        assert rise(0.25) == pytest.approx(0.5)
        assert rise(0.1) == pytest.approx(0.5 - 0.5 * math.cos(0.2 * math.pi))
        assert [rise(t) for t in (0.5, 0.7, 1.0)] == [1.0, 1.0, 1.0]

    def test_losses(self):
        logits, labels = torch.randn(8, 3).double(), torch.tensor([0, 2, 1, 1])
        log_p = logits.log_softmax(1)
        weak, strong = (sum(-log_p[i + start, labels[i]] for i in range(4)) / 4 for start in (0, 4))
        torch.testing.assert_close(source_loss(logits, labels), (weak + strong) / 2)
        sure = torch.tensor([True, False, False, True])
        expected = (-log_p[0, 0] - log_p[3, 1]) / 4
        torch.testing.assert_close(target_loss(logits[:4], labels, sure), expected, msg="a mean over all, not over those kept")
        nothing = target_loss(logits[:4].requires_grad_(), labels, torch.zeros(4, dtype=torch.bool))
        assert nothing.item() == 0
        nothing.backward()


class Recording(nn.Module):
    """A network without normalizers that keeps what it is given and says, with gradients."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), norm or nn.Identity(), nn.Linear(64, 10))
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x):
        y = self.body(x)
        y.retain_grad()
        self.calls.append((x, y))
        return y


def by_hand(algorithm, batch, alone, together, shares, progress, threshold=0.9):
    """Loss, and what is recorded of it, from the logits: sample by sample in numpy, in float64."""

    def softmax(z):
        e = np.exp(z - z.max())
        return e / e.sum()

    alone, together, shares = (t.detach().double().numpy() for t in (alone, together, shares))
    n, m = len(batch[0]), len(batch[3])
    source = shares * together[: 2 * n] + (1 - shares) * alone
    p_s = [softmax(z) for z in source]
    p_t = [softmax(z) for z in together[2 * n :]]
    average = 0.999 * 0.1 + 0.001 * np.mean(p_s[:n], 0)
    recent = (127 * np.full(10, 0.1) + np.mean(p_t[:m], 0)) / 128
    labels = batch[1].tolist()
    loss = sum(-math.log(p_s[i][labels[i % n]]) for i in range(2 * n)) / (2 * n)
    limit = threshold * np.mean([p.max() for p in p_s[:n]])
    kept, other = 0, 0.0
    for i in range(m):
        q = p_t[i] * (1e-6 + average) / (1e-6 + recent)
        q = q / q.sum()
        if q.max() >= limit:
            kept += 1
            other -= math.log(p_t[m + i][int(q.argmax())])
    weight = 0.5 - 0.5 * math.cos(min(math.pi, 2 * math.pi * progress))
    return {
        "source loss": loss,
        "target loss": other / m,
        "mask share": kept / m,
        "threshold": limit,
    }, loss + weight * other / m


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.8])
def test_a_step_is_the_algorithm(progress):
    algorithm, model = learning(matched()[0], Recording(nn.BatchNorm1d(64)))
    batch = next(algorithm.batches(0, 0))
    assert [len(t) for t in batch] == [10, 10, 10, 30, 30]
    torch.manual_seed(3)
    (loss,) = algorithm.gradients(model, batch, progress)
    (shown, alone), (whole, together) = model.calls
    assert torch.equal(shown, torch.cat([batch[0], batch[2]]))
    assert torch.equal(whole, torch.cat([batch[0], batch[2], batch[3], batch[4]]))
    torch.manual_seed(3)
    expected, total = by_hand(algorithm, batch, alone, together, torch.rand_like(alone), progress)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert 0 < expected["mask share"] < 1
    assert algorithm.values() == pytest.approx(expected, rel=1e-5)
    # Labels and threshold are constants: nothing reaches the weak samples of the target through them.
    assert bool((together.grad[20:50] == 0).all())
    assert bool((together.grad[50:] != 0).any()) == (progress > 0)
    assert bool((alone.grad != 0).all())


def test_without_normalizers_both_forwards_say_the_same_of_the_source():
    algorithm, model = learning(matched()[0], Recording())
    list(algorithm.gradients(model, next(algorithm.batches(0, 0)), 0.5))
    (_, alone), (_, together) = model.calls
    torch.testing.assert_close(alone, together[:20])
    torch.testing.assert_close(interpolated(together[:20], alone, torch.rand(20, 10)), together[:20])


@pytest.mark.parametrize("norm", ["batch", "renorm", "switchable", "torch"])
def test_buffers_move_once_a_step_by_the_whole_batch(norm):
    layer = nn.BatchNorm1d(64) if norm == "torch" else ns.make(norm, 64)
    algorithm, model = learning(matched()[0], Recording(layer))
    once = ns.make(norm, 64) if norm != "torch" else nn.BatchNorm1d(64)
    batch = next(algorithm.batches(0, 0))
    list(algorithm.gradients(model, batch, 0.5))
    once(torch.cat([batch[0], batch[2], batch[3], batch[4]]).flatten(1))
    assert int(layer.num_batches_tracked) == 1
    for (name, moved), (_, expected) in zip(layer.named_buffers(), once.named_buffers(), strict=True):
        torch.testing.assert_close(moved, expected, msg=name)


@pytest.mark.parametrize("norm", ["context", "conditional:statistics=condition"])
def test_domains_are_the_conditions(norm):
    trial = matched(normalizers=[norm])[0]
    algorithm, model = learning(trial)
    layer = next(iter(conditions_of(model).values()))
    seen = []
    layer.register_forward_hook(lambda m, x, named, y: seen.append(named[m.condition_name]), with_kwargs=True)
    list(algorithm.gradients(model, next(algorithm.batches(0, 0)), 0.5))
    assert [t.tolist() for t in seen] == [[0] * 20, [0] * 20 + [1] * 60]
    assert layer.num_batches_tracked.tolist() == [1, 1]
    of_source, of_target = (algorithm.tests[i] for i in (1, 0))
    assert (of_source.name, of_target.name) == ("source ", "")
    for test, domain in ((of_source, 0), (of_target, 1)):
        x, _ = next(iter(test.batches))
        test.forward(model.eval(), x)
        assert set(seen[-1].tolist()) == {domain}


def test_batches_depend_on_the_step_alone():
    algorithm = begin(matched()[0], None, ALONE)
    assert algorithm.steps == 6
    first, second = list(algorithm.batches(0, 0)), list(algorithm.batches(1, 6))
    again = list(begin(matched()[0], None, ALONE).batches(1, 6))
    for one, other in zip(second, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    # 190 samples are 6 batches of 30: the target begins anew with the seventh step, in another order.
    assert not torch.equal(first[0][3], second[0][3])
    assert not torch.equal(first[0][0], first[0][2]), "weak and strong differ"
    source, _ = data.load_pair(*(part.strip() for part in PAIR.split("->")))
    assert sum(len(batch[0]) for batch in first) == len(source.train)


def test_weak_and_strong_views_show_the_same_samples():
    settings = {"name": "adamatch", "weak": "crop:padding=1", "strong": "crop:padding=1"}
    algorithm = begin(matched(algorithm=settings)[0], None, ALONE)
    weak, _, strong, *_ = next(algorithm.batches(0, 0))
    assert not torch.equal(weak, strong), "they are moved by other numbers"
    same = {**settings, "weak": "colour:brightness=1e-9", "strong": "colour:contrast=1e-9"}
    weak, _, strong, *others = next(begin(matched(algorithm=same)[0], None, ALONE).batches(0, 0))
    torch.testing.assert_close(weak, strong)
    torch.testing.assert_close(*others)


def test_augmentations_of_a_recipe_that_names_none_suit_grey_and_coloured_images():
    for channels, side in ((1, 8), (3, 32)):
        split = data.Split(torch.zeros(4, channels, side, side), torch.zeros(4, dtype=torch.long))
        dataset = data.Dataset("x", "classification", split, split, ("a",), (0.0,) * channels, (1.0,) * channels)
        for spec in augmentations(matched_settings(), dataset):
            names = [name for name, _ in parse(spec)]
            assert "flip" not in names
            next(iter(data.Batches(split, 2, augment=spec)))


def matched_settings():
    return read({**SMALL, "epochs": 1}).algorithm


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    one, two = Folder(tmp_path / "one"), Folder(tmp_path / "two")
    change = {"normalizers": ["context", "noisy"], "models": ["shallow_cnn:width=4"], "epochs": 3}
    for trial in matched(**change):
        assert run_trial(trial, one) == "finished", one.manifest(trial.identity)["traceback"]
        stop_after_an_epoch(trial, two)
        kept = two.checkpoint(trial.identity)["algorithm"]
        assert kept["seen"] == 6
        assert not torch.allclose(kept["source"], torch.full((10,), 0.1), rtol=1e-5, atol=0)
        assert run_trial(trial, two) == "finished"
        assert records(one, trial) == records(two, trial)
        names = {row[3] for row in records(one, trial)}
        wanted = {"source loss", "target loss", "mask share", "threshold", "accuracy", "source accuracy", "source test loss"}
        assert wanted <= names
        assert len(values(one, trial, "mask share")) == 3


def test_an_average_of_first_weights_is_told(tmp_path):
    (trial,) = matched(epochs=1)
    folder = Folder(tmp_path)
    assert dict(trial.training)["ema"] == 0.999
    run_trial(trial, folder)
    assert folder.manifest(trial.identity)["notes"] == [
        "the average of weights with ema = 0.999 is 99 % first weights after 6 steps"
    ]
    assert dict(trials()[0].training)["ema"] == 0.0


def test_a_search_of_learning_rates_sees_no_label_of_the_target():
    trial = matched(optimizers=[{"learning_rate": [0.1, 0.2]}])[0]
    assert trial.searching
    algorithm = begin(trial, None, ALONE)
    assert [test.name for test in algorithm.tests] == [""]
    source = algorithm.sets[0].train
    assert len(algorithm.tests[0].batches.targets) == round(0.2 * len(source))
    assert algorithm.steps == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"algorithm": "adamtach"}, "algorithm: expects the name of an algorithm: got 'adamtach'; did you mean 'adamatch'?"),
        ({"algorithm": {"threshold": 0.5}}, "or a table with its name"),
        ({"algorithm": 3}, "or a table with its name: got 3"),
        ({"algorithm": {"name": "adamatch", "treshold": 0.5}}, "algorithm.treshold is no setting; did you mean 'threshold'?"),
        ({"algorithm": {"name": "adamatch", "threshold": 2}}, "algorithm.threshold: Input should be less than or equal to 1"),
        ({"algorithm": {"name": "adamatch", "strong": "fold"}}, "algorithm.strong: an augmentation expects options among"),
        ({"algorithm": {"name": "supervised", "mu": 1}}, "algorithm.mu is no setting"),
        ({"datasets": ["digits"]}, "expects pairs of domains with adamatch"),
        ({"statistics_batch": 5}, "expects no statistics_batch with adamatch"),
        ({"training": {"augment": "flip"}}, "expects weak and strong in the table of adamatch"),
        ({"training": {"augment": "flap"}}, "training.augment: an augmentation expects options among"),
    ],
)
def test_what_is_wrong_with_a_recipe(change, says):
    with pytest.raises(OptionError) as caught:
        matched(**change)
    assert says in str(caught.value)


def test_all_mistakes_of_the_table_at_once_with_their_lines(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'datasets = ["{PAIR}"]\nnormalizers = ["batch"]\nepochs = 1\n\n'
        '[algorithm]\nname = "adamatch"\nmuu = 1\nthreshold = 0.0\nunlabelled_ratio = 0\n'
    )
    with pytest.raises(OptionError) as caught:
        read(path)
    text = str(caught.value)
    for line in (
        "3 mistakes",
        "line 7: algorithm.muu is no setting; did you mean 'mu'?",
        "line 8: algorithm.threshold",
        "line 9",
    ):
        assert line in text


def test_recipes_and_trials_round_trip():
    recipe = read({**SMALL, "epochs": 1, "algorithm": {"name": "adamatch", "threshold": 0.8, "mu": 0.5}})
    assert read(recipe.to_dict()) == recipe
    trial = matched()[0]
    assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial
    assert trial.identity != matched(algorithm={"name": "adamatch", "threshold": 0.8})[0].identity
    schema = json.dumps(json_schema())
    for name in ("threshold", "unlabelled_ratio", "source_decay", "target_batches"):
        assert f'"{name}"' in schema


def test_what_cannot_run_is_refused_before_the_first_trial():
    supervised = trials(datasets=["digits:train=60,test=50"], normalizers=["context"])
    with pytest.raises(ns.InputError, match=r"input alone with supervised training: got 'context'.*algorithm = \"adamatch\""):
        refuse_impossible(supervised, None, lambda *_: None)
    kind = kind_of(matched()[0])
    sets = kind.load(PAIR, None)
    for batch, ratio, says in (
        (70, 1, "70 samples of the source for a batch, its training set has 60"),
        (60, 4, "240 samples of the target for a batch, its training set has 190"),
    ):
        trial = matched(batch_sizes=[batch], algorithm={"name": "adamatch", "unlabelled_ratio": ratio})[0]
        assert try_on(trial, sets) == says
    assert try_on(matched(normalizers=["context"])[0], sets) == ""
    assert "floating-point" in try_on(matched(normalizers=["conditional:condition_features=3"])[0], sets)


class Part(Share):
    """A stretch of every batch, sums over all ranks."""

    def part(self, batch):
        return batch.tensor_split(2)[dist.get_rank()]

    def sum(self, values):
        values = values.clone()
        dist.all_reduce(values)
        return values


def one_step(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    trial = matched(batch_sizes=[7])[0]
    algorithm = AdaMatch(trial, kind_of(trial).load(PAIR, None), Part() if ranks > 1 else ALONE)
    torch.manual_seed(0)
    model = Recording(ns.BatchNorm(64)).double().train()
    if ranks > 1:
        ns.synchronize(model)
    batch = [t.double() if t.is_floating_point() else t for t in next(algorithm.batches(0, 0))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda t: torch.full_like(t, 0.3))  # ranks draw numbers of their own
        (loss,) = algorithm.gradients(model, batch, 0.6)
    found = {name: p.grad for name, p in model.named_parameters()}
    found |= {"loss": loss, **{name: torch.tensor(v) for name, v in algorithm.values().items()}}
    return {**found, "source": algorithm.alignment.source, "target": algorithm.alignment.target}


def test_ranks_take_the_step_of_one_process():
    expected, (first, second) = one_step(0, 1), run_ranks(2, one_step, 2)
    for name, value in expected.items():
        added = name == "loss" or value.requires_grad or "." in name
        got = first[name] + second[name] if added else first[name]
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def by_ranks(rank: int, folder: str) -> list[str]:
    engine = RanksEngine()
    what = plan(read({**SMALL, "normalizers": ["context"], "epochs": 1, "seeds": 1}), "cpu", 2)

    def sweep() -> list[Trial]:
        engine.run(Errand(what, Folder(folder), None, lambda _: None))
        return what

    return [trial.identity for trial in engine.among_ranks(sweep)]


@pytest.mark.slow
def test_a_trial_by_ranks(tmp_path):
    first, second = run_ranks(2, by_ranks, str(tmp_path))
    assert first == second
    assert Folder(tmp_path).manifest(first[0])["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_engines_give_the_same(tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="needs ray")
    recipe = {**SMALL, "normalizers": ["context"], "epochs": 1, "seeds": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    ns.compare(recipe, one, engine="inline", quiet=True)
    ns.compare(recipe, two, engine=engine, quiet=True)
    (trial,) = plan(read(recipe), "cpu")
    assert records(Folder(one), trial) == records(Folder(two), trial)


def test_a_comparison_of_two_domains(tmp_path):
    result = ns.compare(
        {
            **SMALL,
            "datasets": ["digits:train=400,test=100 -> digits:train=800,test=200"],
            "normalizers": ["batch", "context", "context:stats=parameters"],
            "batch_sizes": [20],
            "epochs": 4,
            "seeds": 1,
            "training": {"ema": 0.9},
        },
        tmp_path,
        engine="inline",
        quiet=True,
    )
    scores = {trial["normalizer"]: trial["accuracy"] for trial in result.trials}
    assert scores["batch"] > 0.8
    assert scores["context"] > 0.8
