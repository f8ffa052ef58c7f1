"""Charts and heat maps, and the store on the page that keeps every specification and every column of numbers once."""

import base64
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normsmith.errors import DependencyError, InputError
from normsmith.report.pieces import Picture

_NONE = 65535  # the code of a number that is none
Column = Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite chart: a dictionary, or what has `to_dict`, as charts of Altair have.

    `data` are named tables as columns, `{"curve": {"x": [...], "y": [...]}}`, which the specification calls `{"data": {"name": "curve"}}`:
    charts that differ in their data alone share one specification. `words` say what is to be seen. Colours come from the page: leave them
    out, or write `var(--accent)`. A mark with a column `entry` leads to the entry of that name.
    """

    spec: Any
    data: Mapping[str, Mapping[str, Column]] = field(default_factory=dict)
    title: str = ""
    caption: str = ""
    words: str = ""

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The specification without its data, and all data by name."""
        spec = dict(self.spec if isinstance(self.spec, Mapping) else self.spec.to_dict())
        return spec, {**spec.pop("datasets", {}), **self.data}


@dataclass(frozen=True)
class Heatmap:
    """Rows of numbers, one colour a number: how far it is from the middle of its row. Columns have names, such as indices of channels."""

    rows: Mapping[str, Column]
    names: Sequence[Any]
    noun: str = "column"
    title: str = ""
    caption: str = ""


def packed(values: Any) -> dict[str, Any]:
    """Numbers in two bytes each, as a column of a chart or heat map: right to 3e-4 of their distance from the median, or better.

    Codes are equally spaced in asinh((value - median) / scale), the scale being what half of the values lie within.
    """
    numbers: NDArray[np.float64] = np.asarray(values, dtype=np.float64).ravel()
    held = np.isfinite(numbers)
    if not held.any():
        return {"n": numbers.size}
    middle = float(np.median(numbers[held]))
    spread = float(np.median(np.abs(numbers[held] - middle))) or float(np.abs(numbers[held] - middle).max()) or 1.0
    bent = np.arcsinh((numbers[held] - middle) / spread)
    low, high = float(bent.min()), float(bent.max())
    codes = np.full(numbers.size, _NONE, dtype="<u2")
    codes[held] = np.round((bent - low) / ((high - low) or 1.0) * (_NONE - 1)).astype("<u2")
    return {"m": middle, "s": spread, "a": low, "b": high, "p": base64.b64encode(codes.tobytes()).decode()}


class Store:
    """What the scripts of a page read."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._specs: dict[str, int] = {}
        self._charts: list[Any] = []
        self._heatmaps: list[Any] = []
        self._pictures: dict[str, int] = {}

    def chart(self, chart: Chart) -> int:
        """The number under which a chart is drawn."""
        spec, data = chart.parts()
        tables = {name: self._table(table) for name, table in data.items()}
        self._charts.append([_index(self._specs, _plain(spec)), tables])
        return len(self._charts) - 1

    def heatmap(self, heatmap: Heatmap) -> int:
        """The number under which a heat map is drawn."""
        rows = [self._column(values) for values in heatmap.rows.values()]
        names = self._column(heatmap.names)
        self._heatmaps.append({"labels": list(heatmap.rows), "rows": rows, "names": names, "noun": heatmap.noun})
        return len(self._heatmaps) - 1

    def picture(self, picture: Picture) -> int:
        """The number of a picture."""
        return _index(self._pictures, base64.b64encode(picture.png).decode())

    def pictures(self) -> str:
        """All pictures as JSON, which has no character in it that could end a script."""
        return json.dumps(list(self._pictures))

    def _table(self, table: Any) -> Any:
        """A table by the numbers of its columns; rows, as Altair has them, become columns."""
        if not isinstance(table, Mapping):
            table = {key: [row.get(key) for row in table] for key in dict.fromkeys(key for row in table for key in row)}
        return {key: self._column(values) for key, values in table.items()}

    def _column(self, values: Any) -> int:
        whole = json.dumps(values) if isinstance(values, Mapping) else _plain(values)  # what is packed is not rounded
        return _index(self._columns, whole)

    def json(self) -> str:
        """Everything as JSON that can stand in a script of HTML: no character of it can end one."""
        kinds = {"columns": self._columns, "specs": self._specs}
        parts = [f'"{key}":[{",".join(known)}]' for key, known in kinds.items()]
        parts += [f'"charts":{_plain(self._charts)}', f'"heatmaps":{_plain(self._heatmaps)}']
        text = "{" + ",".join(parts) + "}"
        for character in "<>&\u2028\u2029":  # of JSON's own none is among them, so they stand in strings
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text


def _index(known: dict[str, int], text: str) -> int:
    return known.setdefault(text, len(known))


def _plain(value: Any) -> str:
    return json.dumps(_rounded(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _rounded(value: Any) -> Any:
    """Plain data, fractions with five digits, null for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_rounded(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    raise InputError(f"a chart expects numbers, strings and None as data: got a {type(value).__name__}; convert it before")


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and their embedding as one script."""
    try:
        import vl_convert  # noqa: PLC0415  (optional)
    except ImportError:
        raise DependencyError("a page with charts expects vl-convert-python: pip install 'normsmith[report]'") from None
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script
