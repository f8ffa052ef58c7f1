"""Folders of results made up: what trials would have left, without training."""

import hashlib

from normsmith.trials.files import Folder

TRIAL = {
    "dataset": "digits",
    "model": "shallow_cnn",
    "normalizer": "batch",
    "label": "batch",
    "batch": 32,
    "statistics_batch": 32,
    "seed": 0,
    "epochs": 3,
    "steps": None,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": {"name": "cosine", "warmup": 0.0},
    "training": {"amp": False, "threads": 1, "record": [], "device": "cpu"},
    "target_accuracy": None,
    "searching": False,
    "reference_batch": None,
}
SPEED = {"batch": 0.010, "group": 0.012}


def put(folder, normalizer, seed, accuracy, *, status="finished", manifest=None, source="1", records=(), **trial):
    """One trial into a folder; its identity."""
    trial = {
        **TRIAL,
        "normalizer": normalizer,
        "label": normalizer,
        "seed": seed,
        "statistics_batch": trial.get("batch", 32),
        **trial,
    }
    identity = hashlib.sha256(repr((sorted(trial.items()), source)).encode()).hexdigest()[:20]
    speed = SPEED.get(normalizer, 0.011)
    own = [
        (epoch, epoch * 10, "", name, value)
        for epoch in range(3)
        for name, value in (
            ("train loss", 1 / (epoch + 1)),
            ("accuracy", (accuracy or 0.0) * (epoch + 1) / 3),
            ("seconds", epoch * speed),
        )
    ]
    crashed = status == "crashed"
    known = {
        "trial": trial,
        "status": status,
        "accuracy": None if crashed else accuracy,
        "environment": {"source": source, "machine": "here", "processor": "cpu"},
        "started": 0.0,
        "ended": float(seed + 1),
    }
    known |= (
        {"error": "RuntimeError: boom\nmore", "traceback": "Traceback"}
        if crashed
        else {
            "parameters": 1000,
            "steps": 30,
            "memory": 1 << 20,
            "timing": {"seconds": 30 * speed, "seconds per step": speed, "seconds to target": None},
            "notes": [],
        }
    )
    folder = Folder(folder)
    folder.prepare()
    folder.finish(identity, {**known, **(manifest or {})}, [*own, *records])
    return identity


def fill(folder, scores, **trial):
    """Trials from a mapping of normalizers to accuracies, one for each seed."""
    return [put(folder, name, seed, value, **trial) for name, values in scores.items() for seed, value in enumerate(values)]
