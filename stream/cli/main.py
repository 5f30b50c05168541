"""The program `niwaki`: its commands, in the order in which its help shows them.

Progress goes to stderr, and only to a terminal; results go to stdout.
"""

import sys

import typer

from niwaki.pruning.errors import NiwakiError
from niwaki.stream.cli import files, services
from niwaki.stream.cli.console import print_error
from niwaki.stream.cli.options import VersionOption

app = typer.Typer(
    help="A click model that never stops learning, served sparse, and grown dense again"
    " when the world changes.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
_COMMANDS = (
    files.demo,
    services.train,
    services.serve,
    files.replay,
    services.record,
    files.generate,
    files.backtest,
    services.inspect,
    services.export,
    files.check,
    files.schema,
)
for _command in _COMMANDS:
    app.command()(_command)


def main() -> None:
    """The program `niwaki`."""
    try:
        app()
    except (NiwakiError, OSError) as error:
        print_error(f"niwaki: {error}")
        sys.exit(1)


@app.callback()
def niwaki_options(version: VersionOption = False) -> None:
    """Options of the program itself, before the name of a command."""
