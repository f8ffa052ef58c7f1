"""The names in a recipe: of data sets, models and normalizers, each checked by the room that knows them."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from normsmith.data.augment import parse as parse_augmentation
from normsmith.data.load import check_name
from normsmith.errors import NormsmithError
from normsmith.methods.catalog import parse
from normsmith.models.catalog import check_name as check_model
from normsmith.trials.coordinates import Coordinates, gradients_of
from normsmith.trials.labels import NONE


def is_code(model: str) -> bool:
    """Whether a model is named by a factory of the user's, not by the catalog."""
    head = model.partition("(")[0]
    return ":" in head and ("." in head.partition(":")[0] or head.partition(":")[0] in {"hf", "timm", "torchvision"})


def checked_normalizer(value: Any) -> Any:
    """A normalizer as `ns.make` or `ns.convert` takes it."""
    for method in value.values() if isinstance(value, dict) else (value,):
        if (method is None and isinstance(value, dict)) or (method == NONE and isinstance(value, str)):
            continue
        if not isinstance(method, str):
            raise ValueError(f"expects the name of a method: got {method!r}")
        _told(parse, method)
    return value


def checked_coordinates(value: Any) -> Any:
    """A way to place layers as `ns.reparametrize` takes it, with how its coordinates are refreshed."""
    if not isinstance(value, str):
        raise ValueError(f"expects the name of a way to place layers: got {value!r}")
    if value != NONE:
        _told(Coordinates.of, value)
    return value


def checked_gradients(value: Any) -> Any:
    """A way to normalize gradients as `ns.normalize_gradients` takes it."""
    if not isinstance(value, str):
        raise ValueError(f"expects the name of a way to normalize gradients: got {value!r}")
    if value != NONE:
        _told(gradients_of, value)
    return value


def checked_dataset(value: Any) -> Any:
    """A data set that is known, or a path."""
    if not isinstance(value, str):
        raise ValueError(f"expects the name of a data set: got {value!r}")
    _told(check_name, value)
    return value


def checked_model(value: Any) -> Any:
    """A model of the catalog, or a factory."""
    if not isinstance(value, str):
        raise ValueError(f"expects the name of a model or package.module:factory: got {value!r}")
    if not is_code(value):
        _told(check_model, value)
    return value


def checked_augmentation(value: Any) -> Any:
    """Operations on samples that are known."""
    if isinstance(value, str):
        _told(parse_augmentation, value)
    return value


Augmentations = Annotated[str, BeforeValidator(checked_augmentation)]


def _told(check: Any, value: str) -> None:
    """Pydantic collects ValueErrors; ours are, but some are several lines."""
    try:
        check(value)
    except NormsmithError as error:
        raise ValueError(str(error)) from None
