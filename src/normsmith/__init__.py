"""normsmith: every normalizer of the literature as one fast PyTorch family. `normsmith.catalog()` lists them.

Names are looked up on first use, so that importing this package costs next to nothing and the command starts without torch.
"""

import importlib
from typing import Any

from normsmith.errors import (
    BackendError,
    CaptureError,
    DependencyError,
    InputError,
    ModelError,
    NormsmithError,
    OptionError,
    ResultsError,
    SynchronizationError,
    TooFewValuesError,
    UnknownMethodError,
)
from normsmith.methods.catalog import CATALOG, Entry, catalog, make

__version__ = "0.1.0.dev0"

_ELSEWHERE = {
    "Moments": "normsmith.moments",
    "adain": "normsmith.methods.adain",
    **dict.fromkeys(("center", "scale", "standardize", "decorrelate", "whiten"), "normsmith.methods._functions"),
    "backend": "normsmith.kernels.choose",
    "adapt": "normsmith.surgery.adapt",
    "freeze": "normsmith.surgery.freeze",
    "param_groups": "normsmith.surgery.param_groups",
    "recalibrate": "normsmith.surgery.recalibrate",
    "unfreeze": "normsmith.surgery.freeze",
    "conditioned": "normsmith.surgery.conditioned",
    "convert": "normsmith.surgery.convert",
    "Conversion": "normsmith.surgery.conversion",
    "fold": "normsmith.surgery.fold",
    "Fold": "normsmith.surgery.fold",
    "Comparison": "normsmith.comparison.comparison",
    "compare": "normsmith.comparison.running",
    "load_trained": "normsmith.trials.trained",
    "Examination": "normsmith.doctor.examination",
    "Finding": "normsmith.doctor.finding",
    "Recommendation": "normsmith.doctor.recommend.recommendation",
    "examine": "normsmith.doctor.examine",
    "GRU": "normsmith.recurrent.gru",
    "GRUCell": "normsmith.recurrent.gru",
    "LSTM": "normsmith.recurrent.lstm",
    "LSTMCell": "normsmith.recurrent.lstm",
    "GradNormDiscriminator": "normsmith.weights.discriminator",
    "gamma_decay": "normsmith.surgery.gamma_decay",
    "link": "normsmith.surgery.link",
    "normalize_gradients": "normsmith.weights.gradients",
    "load_bridged": "normsmith.surgery.load_bridged",
    "load_model": "normsmith.locate",
    "place_ibn": "normsmith.surgery.place_ibn",
    "register_with_timm": "normsmith.integrations.timm",
    "synchronize": "normsmith.surgery.synchronize",
    "collecting": "normsmith.methods._averages",
    "sparsestmax": "normsmith.methods._sparsestmax",
    "Reparametrization": "normsmith.surgery.reparametrization",
    "reparametrize": "normsmith.surgery.reparametrize",
    "step_schedules": "normsmith.methods._schedules",
    "train_style_transfer": "normsmith.style.training",
    **{entry.class_name: f"normsmith.methods.{entry.name}" for entry in CATALOG.values()},
}

_ROOMS = ("analysis", "data", "models", "weights")  # public as a whole: ns.analysis.bn_jacobian

__all__ = [  # noqa: PLE0604  (the methods come from the catalog)
    "BackendError",
    "CaptureError",
    "DependencyError",
    "Entry",
    "InputError",
    "ModelError",
    "NormsmithError",
    "OptionError",
    "ResultsError",
    "SynchronizationError",
    "TooFewValuesError",
    "UnknownMethodError",
    "catalog",
    "make",
    *sorted({*_ELSEWHERE, *_ROOMS}),
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"normsmith.{name}")
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'normsmith' has no attribute {name!r}; normsmith.catalog() lists the methods")
    value = globals()[name] = getattr(importlib.import_module(_ELSEWHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
