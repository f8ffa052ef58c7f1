"""Callbacks of trainers that move schedules: once per optimizer step, from 0 to 1."""

import importlib
import logging
import sys
import types
import warnings

import pytest
import torch
from torch import nn

import normsmith as ns
from normsmith.integrations._progress import Progress


class Net(nn.Module):
    """A model with a schedule, in the form of Hugging Face: labels in, a loss out; it notes each move of its schedule."""

    def __init__(self):
        super().__init__()
        self.norm = ns.SparseSwitchableNorm(4)
        self.head = nn.Linear(4, 2)
        self.seen = []

    def step_schedule(self, progress):
        self.seen.append(progress)

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.head(self.norm(x).mean(2)), labels)}


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {"x": torch.randn(4, 5), "labels": i % 2}


def quarters(n):
    return [i / n for i in range(n + 1)]


def test_progress_asks_once_per_step_and_ends_at_one():
    model = Net()
    progress = Progress(None)
    for step in (0, 0, 1, 1, 2, 4, 5):
        progress.step(model, step, 4)
    assert model.seen == [0, 0.25, 0.5, 1, 1]
    given = Progress(2)
    given.step(model, 1, float("inf"))
    assert model.seen[-1] == 0.5
    for estimate in (float("inf"), -1, 0, None):
        with pytest.raises(ns.OptionError, match=r"ScheduleCallback\(total=\.\.\.\)"):
            Progress(None).step(model, 0, estimate)
    for total in (0, 1.5, True):
        with pytest.raises(ns.OptionError, match="above zero"):
            Progress(total)


def test_hugging_face_by_hand():
    pytest.importorskip("transformers")
    from normsmith.integrations.huggingface import ScheduleCallback

    model, callback = Net(), ScheduleCallback()
    state = types.SimpleNamespace(global_step=0, max_steps=4)
    callback.on_train_begin(None, state, None, model=model, optimizer=None)
    for state.global_step in range(1, 5):
        callback.on_step_end(None, state, None, model=model, optimizer=None)
    assert model.seen == quarters(4)
    assert model.norm.radius == 1


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    from normsmith.integrations.huggingface import ScheduleCallback

    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=Data(), callbacks=[ScheduleCallback()])
        trainer.train()
    assert trainer.state.global_step == 4
    assert model.seen == quarters(4)


def test_lightning_trainer(tmp_path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lightning.pytorch as lightning
    except ImportError:
        pytest.skip("lightning is not installed")
    from normsmith.integrations.lightning import ScheduleCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch):
            return self.net(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            accumulate_grad_batches=2,
            default_root_dir=tmp_path,
            callbacks=[ScheduleCallback()],
            **quiet,
        )
        trainer.fit(module, torch.utils.data.DataLoader(Data(), batch_size=3))
    assert trainer.global_step == 4
    assert module.net.seen == quarters(4)


@pytest.fixture
def _stand_in(monkeypatch):
    """A `lightning` of nothing but the base class of callbacks, where the real one is not there."""
    package, pytorch = types.ModuleType("lightning"), types.ModuleType("lightning.pytorch")
    pytorch.Callback = type("Callback", (), {})
    package.pytorch = pytorch
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", pytorch)
    monkeypatch.delitem(sys.modules, "normsmith.integrations.lightning", raising=False)
    yield
    sys.modules.pop("normsmith.integrations.lightning", None)


@pytest.mark.usefixtures("_stand_in")
def test_lightning_by_hand():
    callback = importlib.import_module("normsmith.integrations.lightning").ScheduleCallback()
    model = Net()
    trainer = types.SimpleNamespace(global_step=0, estimated_stepping_batches=2, optimizers=[1, 2])
    callback.on_train_start(trainer, model)
    for i, trainer.global_step in enumerate((0, 2, 2, 4)):  # two optimizers, two batches to a step
        callback.on_train_batch_end(trainer, model, None, None, i)
    assert model.seen == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("room", "packages"), [("huggingface", ["transformers"]), ("lightning", ["lightning.pytorch", "pytorch_lightning"])]
)
def test_what_is_not_installed_is_one_sentence(room, packages, monkeypatch):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"normsmith.integrations.{room}", raising=False)
    with pytest.raises(ns.DependencyError, match=f"normsmith.integrations.{room} expects .*: pip install"):
        importlib.import_module(f"normsmith.integrations.{room}")
