"""Results as rows of a CSV file, with the machine, the versions and the commit they were measured on."""

import csv
import io
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from normsmith.bench import allocator


def circumstances(device: str = "cpu") -> dict[str, str]:
    """Where and on what: machine, versions, commit, date."""
    if device != "cpu":
        return {
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
            "commit": _commit(),
            "machine": f"{torch.cuda.get_device_name()}, {_processor()}",
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "triton": version("triton"),
            "allocator": "of torch",
        }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": _commit(),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "numba": version("numba"),
        "allocator": "keeps pages" if allocator.is_set() else "default",
    }


def append(path: Path, rows: Sequence[Any], device: str = "cpu") -> None:
    """Add dataclass rows to a CSV file; the file is replaced as a whole, so that a kill leaves the old or the new one."""
    around = circumstances(device)
    lines = [{**around, **{k: _text(v) for k, v in asdict(row).items()}} for row in rows]
    old = path.read_text() if path.exists() else ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    if not old:
        writer.writeheader()
    writer.writerows(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(old + text.getvalue())
    Path(part.name).replace(path)


def _text(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else value


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=9"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "release " + version("normsmith")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
