"""The structure that docs/why.md draws, held by the imports and names themselves."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import normsmith as ns

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "normsmith"
FLOORS = [
    "errors",
    "writing",
    "tables",
    "cells",
    "derivatives",
    "arithmetic",
    "waiting",
    "moments",
    "combined",
    "covariance",
    "affine",
    "surroundings",
    "world",
    "kernels",
    "activation",
    "plan",
    "normalize",
    "measure",
    "pointwise",
    "blocks",
    "whitening",
    "mixture",
    "methods",
    "recurrent",
    "weights",
    "locate",
    "natural",
    "surgery",
    "analysis",
    "data",
    "models",
    "style",
    "report",
    "doctor",
    "trials",
    "comparison",
    "integrations",
    "bench",
    "commands",
    "cli",
    "__main__",
]
FILES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The floors that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.ImportFrom) and node.module == "normsmith":
            names = [f"normsmith.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("normsmith.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_from_floors_above(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    if parts == ("__init__",):
        pytest.skip("the package itself re-exports from everywhere")
    floor = FLOORS.index(parts[0])
    below = {name for name in imported(path) if name in FLOORS and FLOORS.index(name) > floor}
    assert not below, f"{path.name} imports from {below}, which stand on it"


def test_every_floor_is_in_the_picture():
    existing = {
        p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert existing - {"__init__"} == set(FLOORS)
    picture = (ROOT / "docs" / "why.md").read_text()
    for floor in set(FLOORS) - {"__main__"}:
        assert f"`{floor}.py`" in picture or f"`{floor}/`" in picture


def test_methods_know_no_kernels():
    for path in (SOURCE / "methods").glob("*.py"):
        text = path.read_text()
        for forbidden in ("numba", "triton", "kernels.cpu", "kernels.reference", "register_hook", "data_ptr"):
            assert forbidden not in text, f"{path.name} uses {forbidden}: then the core lacks something"


@pytest.mark.parametrize("name", ns.catalog())
def test_one_stem_everywhere(name):
    entry = ns.catalog()[name]
    room = SOURCE / "methods" / f"{name}.py"
    assert room.exists()
    assert (ROOT / "tests" / "oracles" / f"{name}.py").exists()
    assert entry.load().__module__ == f"normsmith.methods.{name}"
    assert getattr(ns, entry.class_name) is entry.load()
    assert entry.class_name in ns.__all__
    assert entry.class_name in dir(ns)
    card = entry.card()
    for part in ("Formula:", "Cost:", "Fails when:", "Reference:"):
        assert part in card, f"the card of {name} has no '{part}'"
    tree = ast.parse(room.read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert "mix" in functions or "Outside the frame:" in card
    bases = [
        base.id for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases if isinstance(base, ast.Name)
    ]
    others = {e.class_name for e in ns.catalog().values()}
    assert not others & set(bases), "methods do not inherit from each other"


def test_rooms_without_a_line_in_the_catalog():
    rooms = {p.stem for p in (SOURCE / "methods").glob("*.py") if not p.stem.startswith("_") and p.stem != "catalog"}
    assert rooms == set(ns.catalog())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_sizes(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300, "split the file"
    for node in ast.walk(ast.parse(path.read_text())):
        # The loops of the kernels are long on purpose: a function of their own for each step would cost the vectoriser its view.
        if isinstance(node, ast.FunctionDef) and path.parent.name not in {"cpu", "commands"} and path.name != "cli.py":
            assert node.end_lineno - node.lineno < 50, f"{node.name} is too long"


def test_oracles_import_nothing_of_ours():
    for path in (ROOT / "tests" / "oracles").glob("*.py"):
        assert not [
            n
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.ImportFrom) and "normsmith" in (n.module or "")
        ]


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        ns.Nonsense  # noqa: B018
    for name in ns.__all__:
        assert getattr(ns, name) is not None


@pytest.mark.parametrize("command", ["--help", "list --json", "--version", "show nonsense"])
def test_the_command_answers_without_torch(command):
    code = (
        "import sys; sys.argv = ['normsmith', *sys.argv[1:]]\n"
        "from normsmith.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules, 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_generated_files_are_of_the_catalog():
    stub = (SOURCE / "__init__.pyi").read_text()
    for name in ns.__all__:
        assert f"import {name} as {name}" in stub, "run `make docs`"
    assert importlib.util.find_spec("normsmith.methods.catalog")
