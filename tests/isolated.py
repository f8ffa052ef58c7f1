"""Python code in a process of its own: for what happens once per process, or would end this one."""

import json
import os
import subprocess
import sys
import textwrap
from typing import Any


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished process; NORMSMITH_BACKEND is unset unless given."""
    kept = {k: v for k, v in os.environ.items() if k != "NORMSMITH_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def facts_of(code: str, **environment: str) -> Any:
    """What the code printed as its last line, in JSON."""
    done = run_python(code, **environment)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
