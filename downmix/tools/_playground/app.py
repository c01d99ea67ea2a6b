"""Serves the page: what comes in is limited and checked, and nothing is asked from anywhere else."""

from __future__ import annotations

import threading

from flask import Flask, Response, render_template, request
from torch import nn
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge, UnsupportedMediaType

from ...explain import METHODS
from .views import saved, view_network, view_pools

MAX_BYTES = 32 * 2**20
_UPLOAD = "application/octet-stream"  # which the pages of others can't send without asking
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create_app(
    networks: list[tuple[str, nn.Module, list[str]]], image_size: int | None = None, hosts: list[str] | None = None
) -> Flask:
    """The page and what it asks for.

    Args:
        networks: title, network and names of its classes, as ``side_by_side`` gives them.
        image_size: height and width that networks get; by default their own.
        hosts: names under which the page may be asked for; any if None. Without them, a page from elsewhere whose
            name leads to this machine could read what the networks say.
    """
    app = Flask(__name__)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BYTES, TRUSTED_HOSTS=hosts)
    turn = threading.Lock()  # one image at a time, so that memory is not multiplied by impatience

    @app.get("/")
    def page() -> str:
        titles = [" ".join(title.split()) for title, _, _ in networks]
        return render_template("page.html", titles=titles, methods=list(METHODS), max_bytes=MAX_BYTES)

    @app.post("/networks")
    def see_networks() -> str:
        method = request.args.get("method", "gradcam")
        with turn, saved(_upload()) as file:
            views = [
                view_network(" ".join(title.split()), network, names, file, method, image_size)
                for title, network, names in networks
            ]
        return render_template("networks.html", views=views, method=method)

    @app.post("/pools")
    def see_pools() -> str:
        with turn, saved(_upload()) as file:
            return render_template("pools.html", view=view_pools(file))

    @app.errorhandler(ValueError)
    def refuse(error: ValueError) -> str:
        # No error of the page, in whose console a browser would note any other status.
        return render_template("error.html", sentence=str(error))

    @app.errorhandler(HTTPException)
    def fail(error: HTTPException) -> tuple[str, int]:
        return render_template("error.html", sentence=_sentence(error)), error.code or 500

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    return app


def _upload() -> bytes:
    if request.mimetype != _UPLOAD:
        raise UnsupportedMediaType(f"an image is sent as {_UPLOAD}, got {request.mimetype or 'nothing'}")
    return request.get_data()


def _sentence(error: HTTPException) -> str:
    if isinstance(error, RequestEntityTooLarge):
        return f"a file may have {MAX_BYTES // 2**20} MiB; take a smaller one"
    if isinstance(error, InternalServerError):
        return f"this should not have happened: {error.original_exception!r}; the terminal shows where"
    return error.description or error.name
