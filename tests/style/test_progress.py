"""What a training shows: a bar on a terminal, lines elsewhere."""

from io import StringIO

import pytest
from rich.console import Console

from normsmith.style import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_shown(monkeypatch, terminal):
    monkeypatch.setattr(progress, "SPEAK_EVERY", 0.0)
    console = Console(file=StringIO(), force_terminal=terminal, width=120)
    with progress.shown("decoder", console) as tell:
        for step in range(1, 5):
            tell(step / 4, step, 0.5)
    said = console.file.getvalue()
    assert "decoder" in said
    assert "step 4, loss 0.500" in said
    assert "100%" in said
    assert ("min left" in said) != terminal


def test_lines_are_few():
    console = Console(file=StringIO(), force_terminal=False)
    with progress.shown("decoder", console) as tell:
        for step in range(1, 100):
            tell(step / 100, step, 0.5)
    assert not console.file.getvalue()
