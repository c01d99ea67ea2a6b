"""The command line: wires the tools together, nothing else."""

from __future__ import annotations

import difflib
import importlib
import sys
from argparse import ArgumentError
from itertools import islice
from typing import Any

from ._extras import TRAINING, need

COMMANDS = (
    *("bench", "compare", "convert", "explain", "export", "models", "playground"),
    *("pool", "profile", "report", "tables", "train", "validate"),
)
_BAD_INPUT = (ValueError, TypeError, OSError, FloatingPointError, ImportError)


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``downmix`` and ``python -m downmix``. Bad input ends in one sentence and exit code 2."""
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt as stop:  # perhaps while packages are imported, which takes seconds
        sys.exit(getattr(stop, "code", 130))


def _run(argv: list[str]) -> None:
    try:
        need("train", "jsonargparse", *TRAINING)
    except ImportError as error:
        sys.exit(f"downmix: {error}")
    from jsonargparse import ArgumentParser

    from ._version import __version__

    about = "Cheaper ConvNets that keep more of the signal where they shrink it."
    parser = ArgumentParser(prog="downmix", description=about, exit_on_error=False)
    parser.add_argument("--version", action="version", version=f"downmix {__version__}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    tools = {name: importlib.import_module(f"{__package__}.tools.{name}") for name in COMMANDS}
    for name, tool in tools.items():
        command = ArgumentParser(description=tool.HELP, exit_on_error=False)
        commands.add_subcommand(name, command, help=tool.HELP)  # first: tools may have subcommands of their own
        tool.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    words = _recipe_first([_underscored(word) for word in argv])
    try:
        args = parser.parse_args(words)
    except ArgumentError as error:
        near = _nearest(words, commands)
        sys.exit(_refuse(" ".join(str(error).split()) + near, hint="--help shows what can be said"))
    options = args[args.command]
    # Commands get what is theirs alone; debug comes once more behind what `downmix explain` is to show.
    debug = [options.pop(name) for name in list(options.keys()) if name.endswith("debug")]
    try:
        tools[args.command].run(options)
    except _BAD_INPUT as error:
        if any(debug):
            raise
        sys.exit(_refuse(_sentence(error), hint="--debug shows where"))


def _underscored(word: str) -> str:
    """Options may be written with dashes: --print-config is --print_config."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _recipe_first(words: list[str]) -> list[str]:
    """The same with recipes right behind the command: the last word wins, and that is to be what is given besides."""
    recipes, others, rest = [], [], iter(words)
    for word in rest:
        if word == "--recipe":
            recipes += [word, *islice(rest, 1)]
        else:
            (recipes if word.startswith("--recipe=") else others).append(word)
    return others[:1] + recipes + others[1:]


def _nearest(words: list[str], commands: Any) -> str:
    """What an unknown option may have meant."""
    if not words or words[0] not in commands.choices:
        return ""
    known = [option for action in commands.choices[words[0]]._actions for option in action.option_strings]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known and (near := difflib.get_close_matches(name, known, n=1)):
            return f"; did you mean {near[0]}?"
    return ""


def _sentence(error: BaseException) -> str:
    words = str(error).strip()
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file or folder {error.filename}"
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"{error.filename} is a folder; give a file"
    if words.startswith("Caught "):
        # A loader's worker sends its traceback along with the error, whose last line starts with the error's class.
        words = words.rpartition("\n")[2].partition(": ")[2]
    return " ".join(words.split()) or type(error).__name__


def _refuse(sentence: str, hint: str) -> int:
    print(f"downmix: error: {sentence} ({hint})", file=sys.stderr)
    return 2
