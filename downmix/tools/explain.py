"""`downmix explain`: what a network does with its images."""

from __future__ import annotations

from typing import Any

from . import _explain_cam, _explain_probabilities, _explain_signal, _explain_tradeoff

HELP = "Show what a network does: where it looks, what its PiX layers and pools let through, and what accuracy costs."
_WHAT = {
    "cam": _explain_cam,
    "probabilities": _explain_probabilities,
    "signal": _explain_signal,
    "tradeoff": _explain_tradeoff,
}


def add_arguments(parser: Any) -> None:
    whats = parser.add_subcommands(dest="what", metavar="WHAT", title="what to show")
    for name, tool in _WHAT.items():
        command = type(parser)(description=tool.HELP, exit_on_error=False)
        whats.add_subcommand(name, command, help=tool.HELP)
        tool.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: Any) -> None:
    _WHAT[args.what].run(args[args.what])
