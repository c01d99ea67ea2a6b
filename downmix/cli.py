"""The command line: wires the tools together, nothing else."""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("compare", "models")
_BAD_INPUT = (ValueError, TypeError, OSError, FloatingPointError)


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``downmix`` and ``python -m downmix``. Bad input ends in one sentence and exit code 2."""
    try:
        from jsonargparse import ArgumentParser
    except ImportError:
        sys.exit("downmix: the command line needs more packages: pip install 'downmix[train]'")
    from ._version import __version__

    parser = ArgumentParser(prog="downmix", description="Cheaper ConvNets that keep more of the signal.")
    parser.add_argument("--version", action="version", version=f"downmix {__version__}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    tools = {name: importlib.import_module(f"{__package__}.tools.{name}") for name in COMMANDS}
    for name, tool in tools.items():
        command = ArgumentParser(description=tool.HELP)
        tool.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        commands.add_subcommand(name, command, help=tool.HELP)
    args = parser.parse_args(argv)
    options = args[args.command]
    try:
        tools[args.command].run(options)
    except _BAD_INPUT as error:
        if options.debug:
            raise
        sys.exit(_refuse(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(error: Exception) -> int:
    # A loader's worker sends its traceback along with the error; the sentence is its last line.
    sentence = str(error).strip().rpartition("\n")[2] or type(error).__name__
    print(f"downmix: error: {sentence} (--debug shows where)", file=sys.stderr)
    return 2
