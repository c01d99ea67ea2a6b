"""The command line: wires the tools together, nothing else."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentError

COMMANDS = ("bench", "compare", "convert", "export", "models", "profile", "tables")
_BAD_INPUT = (ValueError, TypeError, OSError, FloatingPointError)


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``downmix`` and ``python -m downmix``. Bad input ends in one sentence and exit code 2."""
    try:
        from jsonargparse import ArgumentParser
    except ImportError:
        sys.exit("downmix: the command line needs more packages: pip install 'downmix[train]'")
    from ._version import __version__

    about = "Cheaper ConvNets that keep more of the signal where they shrink it."
    parser = ArgumentParser(prog="downmix", description=about, exit_on_error=False)
    parser.add_argument("--version", action="version", version=f"downmix {__version__}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    tools = {name: importlib.import_module(f"{__package__}.tools.{name}") for name in COMMANDS}
    for name, tool in tools.items():
        command = ArgumentParser(description=tool.HELP, exit_on_error=False)
        tool.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        commands.add_subcommand(name, command, help=tool.HELP)
    try:
        args = parser.parse_args(argv)
    except ArgumentError as error:
        sys.exit(_refuse(" ".join(str(error).split()), hint="--help shows what can be said"))
    options = args[args.command]
    try:
        tools[args.command].run(options)
    except _BAD_INPUT as error:
        if options.debug:
            raise
        # A loader's worker sends its traceback along with the error; the sentence is its last line.
        sys.exit(_refuse(str(error).strip().rpartition("\n")[2] or type(error).__name__, hint="--debug shows where"))
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(sentence: str, hint: str) -> int:
    print(f"downmix: error: {sentence} ({hint})", file=sys.stderr)
    return 2
