"""`sweep`: every trial of a recipe run, the impossible ones refused before the first starts, what is done already left as it is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch

from normsmith.errors import InputError, OptionError
from normsmith.trials.algorithms import Sets, kind_of
from normsmith.trials.build import try_on
from normsmith.trials.engines import Engine, Errand
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial, after_search, plan
from normsmith.trials.recipe import Recipe
from normsmith.trials.trial import Word


class Listener:
    """Hears how a sweep goes on; this one says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The sweep is over."""

    def checking(self, done: int, total: int) -> None:
        """A combination was tried on."""

    def planned(self, trials: Sequence[Trial], finished: Mapping[Trial, float | None]) -> None:
        """A stage is about to start; some of it is finished already, with these scores."""

    def told(self, word: Word) -> None:
        """A trial has got so far."""


def sweep(
    recipe: Recipe,
    folder: Folder,
    engine: Engine,
    root: Path | None,
    listener: Listener,
    log: tuple[str, ...] = (),
    *,
    resume: bool = True,
) -> list[Trial]:
    """Run what is not done yet, or with `resume=False` everything; all trials of the recipe, those of a search included."""
    folder.prepare()
    first = plan(recipe, device_of(recipe), engine.ranks)
    left = [t for t in first if not resume or folder.manifest(t.identity) is None]
    refuse_impossible(left, root, listener.checking)
    if not resume:
        _discard(first, folder)
    _run(first, folder, engine, root, listener, log)
    searched = {trial: _score(folder, trial) for trial in first if trial.searching}
    second = after_search(recipe, searched)
    if second:
        if not resume:
            _discard(second, folder)
        _run(second, folder, engine, root, listener, log)
    return [*first, *second]


def _discard(trials: Sequence[Trial], folder: Folder) -> None:
    for trial in trials:
        folder.discard(trial.identity)


def _run(
    trials: Sequence[Trial], folder: Folder, engine: Engine, root: Path | None, listener: Listener, log: tuple[str, ...]
) -> None:
    known = {trial: folder.manifest(trial.identity) for trial in trials}
    finished = {trial: manifest["accuracy"] for trial, manifest in known.items() if manifest is not None}
    listener.planned(trials, finished)
    left = [trial for trial in trials if trial not in finished]
    engine.run(Errand(left, folder, root, listener.told, log))


def _score(folder: Folder, trial: Trial) -> float | None:
    manifest = folder.manifest(trial.identity)
    return None if manifest is None else manifest["accuracy"]


def device_of(recipe: Recipe) -> str:
    """The device that a recipe means on this machine."""
    wanted = recipe.training.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise OptionError(f"training.device is expected as auto, cpu, cuda or cuda:0: got {wanted!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"training.device is expected to be there: got {wanted!r}, and torch sees no GPU; take device = 'cpu'"
        )
    return wanted


def refuse_impossible(trials: Sequence[Trial], root: Path | None, tell: Callable[[int, int], None]) -> None:
    """Raise, with all of them, if some combination of model, normalizer and batch cannot run."""
    kinds = {(t.dataset, t.model, t.normalizer, t.reparametrize, t.statistics_batch): t for t in trials}
    faults = []
    loaded: tuple[str, Sets] | None = None
    for number, trial in enumerate(sorted(kinds.values(), key=lambda t: t.dataset)):
        if loaded is None or loaded[0] != trial.dataset:
            loaded = trial.dataset, kind_of(trial).load(trial.dataset, None if root is None else str(root))
        if trial.statistics_batch < trial.ranks:
            fault = f"{trial.ranks} ranks for {trial.statistics_batch} samples, each needs one"
        else:
            fault = try_on(trial, loaded[1])
        if fault:
            faults.append(f"  {trial.model} with {trial.label} at {trial.statistics_batch} samples a statistic: {fault}")
        tell(number + 1, len(kinds))
    if faults:
        raise InputError("compare expects combinations that can run: got some that cannot:\n" + "\n".join(faults))
