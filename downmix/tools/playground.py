"""`downmix playground`: a page on this machine that shows what networks and pools make of an image."""

from __future__ import annotations

import ipaddress
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._extras import need
from ._console import wide_console
from ._trained import side_by_side

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

HELP = "Open a page on this machine: drop an image, see what networks and pools make of it."


def add_arguments(parser: Any) -> None:
    parser.add_argument("--models", nargs="+", type=str, default=[], help="networks; without them the pools alone")
    parser.add_argument(
        "--checkpoints", nargs="+", type=str, default=None, help="trained weights, one each; pretrained for timm's"
    )
    parser.add_argument(
        "--classes", type=Path, default=None, help="file with a class a line, or folder of class folders"
    )
    parser.add_argument("--image_size", type=int, default=None, help="height and width; by default the network's own")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address that listens; by default this machine's")
    parser.add_argument("--port", type=int, default=7860, help="0 for one that is free")


def run(args: Any) -> None:
    console = wide_console()
    with console.status("loading the networks"):
        server = open_server(**args)
    if not _is_own(args.host):
        console.print(
            f"warning: whoever reaches {args.host} can use the page and this machine's time; it has no password",
            soft_wrap=True,
        )
    where = f"http://{_in_address(args.host)}:{server.port}/"
    console.print(f"the page: {where}   (Ctrl-C ends it)", soft_wrap=True, highlight=False)
    server.serve_forever()


def open_server(
    models: list[str],
    *,
    checkpoints: list[str] | None = None,
    classes: Path | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    host: str = "127.0.0.1",
    port: int = 0,
) -> BaseWSGIServer:
    """The page's server, which listens and is to be started by its ``serve_forever``.

    The arguments are the command's.

    Raises:
        ValueError: if a network or its weights can't be used, or the address is taken.
        ImportError: if Flask is missing.
    """
    need("playground", "flask")
    from werkzeug.serving import make_server  # comes with Flask

    from ._playground.app import create_app

    if not 0 <= port < 2**16:
        raise ValueError(f"port must be from 0 to 65535, got {port}")
    networks = list(side_by_side(models, checkpoints, classes, device))
    hosts = [_in_address(host), "localhost"] if _is_own(host) else None
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request says nothing here
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"can't listen on {host}, port {port}: {error}; choose others by --host and --port") from error
    with listening:  # the server has a copy of it
        return make_server(
            host,
            listening.getsockname()[1],
            create_app(networks, image_size, hosts),
            threaded=True,
            fd=listening.fileno(),
        )


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_own(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
