"""The command line: what the commands are; each is a few lines in `commands/`."""

import sys

from cyclopts import App

import normsmith
from normsmith.commands import bench, compare, methods, models, stylize
from normsmith.errors import NormsmithError

HELP = f"""{(normsmith.__doc__ or "").partition(chr(10))[0]}

Exit status: 0 done, 1 a finding of --fail-on, 2 input or a command line that cannot work (standard error says what to do), 130 interrupted.
"""

app = App(name="normsmith", help=HELP, version=normsmith.__version__)
app.command(methods.list_methods, name="list")
for command in (
    methods.show,
    models.examine,
    models.convert,
    compare.compare,
    compare.report,
    compare.demo,
    stylize.stylize,
    bench.bench,
):
    app.command(command)
app.register_install_completion_command()


def main() -> None:
    """Run the command; what is wrong with its input is one sentence on standard error and exit status 2."""
    try:
        app()
    except NormsmithError as error:
        print(f"normsmith: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
