"""What a sweep shows while it runs: on a terminal the scores so far and bars, for the whole and for each trial; elsewhere lines."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from normsmith.trials.plan import Trial
from normsmith.trials.sweep import Listener
from normsmith.trials.trial import Word

_DONE = {"finished", "diverged", "crashed"}
_COLUMNS = 8  # settings that a table has room for


class _Screen(Progress):
    """The bars, and above them the scores."""

    def __init__(self, console: Console) -> None:
        self.scores: dict[Trial, float] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, the scores first."""
        if self.scores:
            yield as_table(self.scores)
        yield from super().get_renderables()


class Live(Listener):
    """On standard error, so that standard output is the result alone."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.progress = _Screen(self.console)
        self._trials: dict[str, Trial] = {}
        self._shares: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._whole: TaskID | None = None
        self._checks: TaskID | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def checking(self, done: int, total: int) -> None:
        """One combination more was tried on."""
        if self._checks is None:
            self._checks = self.progress.add_task("trying combinations", total=total, note="")
        self.progress.update(self._checks, completed=done, note=f"{done} of {total}", visible=done < total)

    def planned(self, trials: Sequence[Trial], finished: Mapping[Trial, float | None]) -> None:
        """A stage is about to start."""
        for old in (self._whole, *self._bars.values()):
            if old is not None:
                self.progress.remove_task(old)
        self._bars, self._trials = {}, {trial.identity: trial for trial in trials}
        self._shares = {trial.identity: 1.0 for trial in finished}
        self.progress.scores = {trial: score for trial, score in finished.items() if score is not None}
        what = "searching rates" if any(trial.searching for trial in trials) else "all trials"
        self._whole = self.progress.add_task(what, total=len(trials), note=self._counted())
        self.progress.update(self._whole, completed=len(finished))
        if not self.console.is_terminal and trials:
            done = f", {len(finished)} finished before" if finished else ""
            self.console.print(f"{len(trials)} trials{done}", soft_wrap=True)

    def told(self, word: Word) -> None:
        """A trial has got so far."""
        trial = self._trials.get(word.identity)
        if trial is None or self._whole is None:
            return
        ended = word.status in _DONE
        self._shares[word.identity] = 1.0 if ended else word.step / max(word.total, 1)
        score = "" if word.score is None else f"{word.score:.1%}"
        if ended:
            if word.score is not None:
                self.progress.scores[trial] = word.score
            bar = self._bars.pop(word.identity, None)
            if bar is not None:
                self.progress.remove_task(bar)
            if not self.console.is_terminal:
                self.console.print(f"{self._counted()}  {trial.title}  {word.status}  {score}", soft_wrap=True)
        else:
            if word.identity not in self._bars:
                self._bars[word.identity] = self.progress.add_task(trial.title, total=word.total, note="")
            self.progress.update(self._bars[word.identity], completed=word.step, note=score)
        self.progress.update(self._whole, completed=sum(self._shares.values()), note=self._counted())

    def _counted(self) -> str:
        return f"{sum(share == 1.0 for share in self._shares.values())} of {len(self._trials)}"


def as_table(scores: Mapping[Trial, float]) -> Table:
    """The mean score of each normalizer in each setting, and of how many seeds; the last settings where there are many."""
    found: dict[str, dict[str, list[float]]] = {}
    settings: dict[str, None] = {}
    for trial, score in scores.items():
        name = f"{trial.dataset} {trial.model}\nbatch {trial.batch}"
        settings[name] = None
        found.setdefault(trial.label, {}).setdefault(name, []).append(score)
    shown = list(settings)[-_COLUMNS:]
    table = Table("so far", *shown, box=None, pad_edge=False)
    for label, by_setting in found.items():
        cells = (by_setting.get(name, []) for name in shown)
        table.add_row(label, *(f"{statistics.mean(each):.1%} of {len(each)}" if each else "" for each in cells))
    return table
