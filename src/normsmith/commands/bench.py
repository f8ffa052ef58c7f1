"""`bench`: every method beside torch's own and the formula."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def bench(
    *,
    methods: list[str] | None = None,
    shapes: list[str] | None = None,
    layouts: list[str] | None = None,
    modes: list[str] | None = None,
    rounds: int = 11,
    backend: str = "auto",
    network: bool = True,
    device: str = "auto",
    dtypes: list[str] | None = None,
    oracles: Path = Path("tests/oracles"),
    save: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Time every method beside torch's own and the formula in plain torch, alone and inside a network.

    Parameters
    ----------
    methods
        Names of the catalog (default: all); `--methods batch --methods group`.
    shapes
        Shapes such as 32x64x56x56, N and C first (default: six from tokens to three dimensions).
    layouts
        rows (contiguous), columns (channels_last), or both (default).
    modes
        forward, forward+backward, eval (default: all three).
    rounds
        Interleaved rounds a median is taken of.
    backend
        Force a backend for our layers: auto, torch, cpu, cuda, reference.
    network
        Also measure the cost inside a small network.
    device
        cpu, cuda, or auto (default): a GPU where there is one. There shapes are those of ResNet-50, nnU-Net and a transformer.
    dtypes
        float32, bfloat16, float16 (default: float32, on a GPU bfloat16 too).
    oracles
        A folder with the formulas in plain torch, as in a checkout; left out if it does not exist.
    save
        A folder to append the rows to, as cpu.csv and network.csv, of a GPU as gpu.csv and gpu_network.csv.
    as_json
        Print the rows as JSON instead of tables.
    """
    from normsmith.bench import allocator, session

    allocator.restart_with_settings()
    session.run(
        methods=methods,
        shapes=shapes,
        layouts=layouts,
        modes=modes,
        rounds=rounds,
        backend=backend,
        network=network,
        device=device,
        dtypes=dtypes,
        oracles=oracles,
        save=save,
        as_json=as_json,
    )
