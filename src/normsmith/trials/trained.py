"""`load_trained`: the model of a trial at its end."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from normsmith import data
from normsmith.errors import ResultsError
from normsmith.trials.algorithms import begin
from normsmith.trials.build import build, place
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial
from normsmith.trials.share import ALONE


def load_trained(folder: str | Path, identity: str, *, root: str | Path | None = None) -> tuple[nn.Module, data.Batches]:
    """The model of a trial in a folder of results, in evaluation, and the test set in batches of the size it was trained with.

    The recipe must have said `keep_weights = true`.
    """
    results = Folder(folder)
    manifest = results.manifest(identity)
    if manifest is None:
        raise ResultsError(
            f"load_trained expects a trial of {str(folder)!r}: got {identity!r}, which is not there or not whole"
        )
    trial = Trial.from_dict(manifest["trial"])
    dataset = data.load(trial.dataset, root)
    model = build(trial, dataset)
    if trial.reparametrize is not None:  # shapes may depend on the data; numbers are loaded
        local = replace(trial, training=tuple({**dict(trial.training), "device": "cpu"}.items()))
        place(model, trial, begin(local, None if root is None else str(root), ALONE))
    model.load_state_dict(results.load_weights(identity))
    return model.eval(), data.Batches(dataset.test, trial.batch, shuffle=True, mean=dataset.mean, std=dataset.std)
