"""`Finding`: one thing that is wrong, or worth knowing, with its evidence and the line of code that cures it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """What a check has found in one or several layers."""

    code: str  # stable: NS101 and so on
    title: str
    severity: Severity
    layers: tuple[str, ...]
    evidence: Mapping[str, Mapping[str, float | str]]  # numbers by layer
    explanation: str
    cure: str  # one line of code of this package
    see: tuple[str, ...] = field(default=())  # threads and papers

    @property
    def weight(self) -> int:
        """How bad it is, for sorting."""
        return SEVERITIES.index(self.severity)
