"""The page shows what the commands compute, and takes nothing but images, from this machine."""

import base64
import io
import re
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flask.testing import FlaskClient
from PIL import Image
from safetensors.torch import save_file
from werkzeug.test import TestResponse

from downmix.cli import main
from downmix.explain import METHODS, attend, measure_probabilities
from downmix.layers.pools import POOLS
from downmix.models._networks import create_network
from downmix.tools import playground
from downmix.tools._picture import read_picture
from downmix.tools._playground import app, views
from downmix.tools._trained import read_images
from downmix.tools.pool import reduce_picture
from tests.refused import refused

NAMES = ["ant", "bee", "cow"]


@pytest.fixture(scope="module")
def networks() -> list[Any]:
    torch.manual_seed(0)
    return [(name, create_network(name, num_classes=3).eval(), NAMES) for name in ("tiny_resnet", "tiny_pix_resnet")]


@pytest.fixture
def client(networks: list[Any]) -> FlaskClient:
    return app.create_app(networks, image_size=16, hosts=["localhost"]).test_client()


def photo(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def send(client: FlaskClient, path: str, data: bytes, **more: Any) -> TestResponse:
    return client.post(path, data=data, content_type="application/octet-stream", **more)


def pictures(page: str) -> list[np.ndarray]:
    urls = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url)))) for url in urls]


def test_networks_side_by_side_are_what_the_functions_say(
    client: FlaskClient, networks: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(photo()))
    page = send(client, "/networks?method=layercam", (tmp_path / "photo.png").read_bytes()).text
    cams = [picture for picture in pictures(page) if picture.shape == (16, 16, 3)]
    for (name, network, _), cam, article in zip(networks, cams, page.split("<article>")[1:], strict=True):
        batch, seen = read_images(network, [tmp_path / "photo.png"], 16)
        found = attend(network, batch, method="layercam")
        told = re.findall(r'<th scope="row">(ant|bee|cow)</th><td>([\d.]+)', article)
        order = found.scores[0].argsort(descending=True).tolist()
        assert told == [(NAMES[label], f"{found.scores[0, label]:.3f}") for label in order]
        weight = found.maps[0].numpy()
        hottest, coldest = (np.unravel_index(place, (16, 16)) for place in (weight.argmax(), weight.argmin()))
        for place, colour in ((hottest, (0.5, 0, 0)), (coldest, (0, 0, 0.5))):  # jet's ends
            expected = 255 * (0.55 * seen[0][place].numpy() + 0.45 * np.array(colour))
            np.testing.assert_allclose(cam[place], expected, atol=1)
        assert ("no PiX layer" in article) == (name == "tiny_resnet")
    measured = measure_probabilities(network, [(batch, torch.tensor([0]))], 1)
    rows = re.findall(r'<th scope="row">(layer.*?)</th><td>(\d+)</td><td>([\d.]+)</td>\s*<td>([\d.]+)</td>', page)
    assert rows == [
        (layer, str(len(p.mean)), f"{p.mean.mean():.3f}", f"{100 * p.pick_share.mean():.1f}")
        for layer, p in measured.items()
    ]


def test_pools_are_those_of_the_command(client: FlaskClient, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(photo()))
    page = send(client, "/pools", (tmp_path / "photo.png").read_bytes()).text
    found = reduce_picture(read_picture(tmp_path / "photo.png"), list(POOLS))
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', page)
    assert rows == [(one.label, *one.cells) for one in found]
    assert "50×40 to 25×20, windows of 2×2" in page
    assert pictures(page)[0].shape[1] > 3 * 320


def test_large_pictures_are_made_smaller_before_they_are_pooled(client: FlaskClient) -> None:
    assert "1000×500 to 62×31" in send(client, "/pools", encoded(photo(1200, 600), "JPEG")).text


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What networks get to see, [16, 16, 3]."""
    found: list[torch.Tensor] = []
    monkeypatch.setattr(app, "view_network", lambda *args: found.append(read_images(args[1], [args[3]], 16)[1][0]))
    monkeypatch.setattr(app, "render_template", lambda *_, **__: "")
    return found


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_networks_see_every_kind_of_image(client: FlaskClient, seen: list[torch.Tensor], mode: str) -> None:
    grey = Image.new("L", (50, 40), 100)
    image = Image.fromarray(np.full((40, 50), 257 * 100, np.uint16)) if mode == "I;16" else grey.convert(mode)
    send(client, "/networks", encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert seen[0].mean().item() == pytest.approx(100 / 255, abs=0.02)


def test_networks_see_upright_images_on_white(client: FlaskClient, seen: list[torch.Tensor]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    image = Image.new("RGBA", (40, 40))
    image.paste("black", (0, 0, 20, 40))  # the left, which becomes the top; the rest is transparent
    send(client, "/networks", encoded(image, exif=exif))
    assert seen[0][:6].mean() < 0.1
    assert seen[0][-6:].mean() > 0.9


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "this is no image that can be read; take one of BMP, GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "this is no image that can be read; take"),
        (encoded(photo(), "JPEG")[:1500], "the image can&#39;t be read as a picture: image file is truncated"),
        (
            encoded(Image.new("1", (8000, 8000))),
            "may have 32 million pixels, and this one has 8000×8000; make it smaller",
        ),
        (encoded(Image.new("1", (20000, 20000))), "this is no image that can be read .*decompression bomb"),
        (encoded(photo(1, 1)), "a picture of 1×1 pixels is too small"),
    ],
    ids=["nothing", "program", "broken", "large", "bomb", "tiny"],
)
def test_a_file_that_can_t_be_shown_gets_a_sentence(client: FlaskClient, data: bytes, sentence: str) -> None:
    answer = send(client, "/pools", data)
    assert re.fullmatch(rf'<p class="error" role="alert">.*{sentence}.*\.</p>', answer.text)
    assert answer.status_code == 200


def test_only_the_head_of_a_large_image_is_read(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo())
    monkeypatch.setattr(views, "MAX_PIXELS", 40 * 50 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was unpacked"))
    assert "this one has 50×40" in send(client, "/networks", data).text


@pytest.mark.parametrize(
    ("path", "more", "status", "sentence"),
    [
        ("/pools", {"data": bytes(app.MAX_BYTES + 1)}, 413, "a file may have 32 MiB; take a smaller one."),
        ("/pools", {"content_type": "multipart/form-data"}, 415, "an image is sent as application/octet-stream, got"),
        ("/pools", {"headers": {"Host": "elsewhere.example"}}, 400, "trusted"),
        ("/networks?method=magic", {}, 200, "method must be .*gradcam.*magic"),
        ("/files/etc", {}, 404, "not found"),
    ],
)
def test_what_the_page_does_not_send_is_refused(
    client: FlaskClient, path: str, more: dict[str, Any], status: int, sentence: str
) -> None:
    answer = client.post(path, **{"data": encoded(photo()), "content_type": "application/octet-stream"} | more)
    assert (answer.status_code, bool(re.search(sentence, answer.text))) == (status, True), answer.text


def test_a_fault_of_ours_gets_a_sentence_too(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "view_pools", lambda file: {}["nothing"])
    answer = send(client, "/pools", encoded(photo()))
    assert answer.status_code == 500
    assert "this should not have happened: KeyError(&#39;nothing&#39;)" in answer.text


def test_the_page_asks_nobody_else(client: FlaskClient) -> None:
    """Its policy forbids it, and nothing in it tries."""
    paths = ("/", "/static/page.js", "/static/page.css")
    page, script, style = (client.get(path, buffered=True) for path in paths)
    assert "default-src 'self'; img-src data:;" in page.headers["Content-Security-Policy"]
    assert script.text
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.text + script.text + style.text)
    assert re.findall(r"<option>(.*?)</option>", page.text) == list(METHODS)


def test_nothing_is_kept(client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    send(client, "/networks", encoded(photo()))
    send(client, "/networks", encoded(photo(), "JPEG")[:1500])
    assert not list(tmp_path.iterdir())


def test_without_networks_there_are_pools() -> None:
    alone = app.create_app([]).test_client()
    assert "--models A B" in alone.get("/").text
    assert "method" not in alone.get("/").text


def test_the_server_is_this_machine_s_alone(tmp_path: Path) -> None:
    save_file(create_network("tiny_pix_resnet").state_dict(), tmp_path / "tiny.safetensors")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    server = playground.open_server(
        ["tiny_pix_resnet"], checkpoints=[str(tmp_path / "tiny.safetensors")], classes=tmp_path / "names.txt"
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert server.socket.getsockname() == ("127.0.0.1", server.port)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/") as answer:
            assert "tiny_pix_resnet" in answer.read().decode()
        with pytest.raises(ValueError, match=f"can't listen on 127.0.0.1, port {server.port}: .*--port"):
            playground.open_server([], port=server.port)
    finally:
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_who_opens_it_to_others_is_warned(
    host: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from werkzeug.serving import BaseWSGIServer

    monkeypatch.setattr(BaseWSGIServer, "serve_forever", lambda server: server.server_close())
    main(["playground", "--host", host, "--port", "0"])
    printed = capsys.readouterr().out
    assert re.search(rf"the page: http://{re.escape(host)}:\d+/", printed)
    assert ("has no password" in printed) == warned


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "pix_resnet29_small"], "no published weights of pix_resnet29_small; give a file"),
        (["--models", "tiny_resnet", "--checkpoints", "a", "b"], "give one checkpoint for each network, got 2 for 1"),
        (["--port", "99999"], "port must be from 0 to 65535, got 99999"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["playground", *arguments], sentence, capsys)


def test_without_flask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(ImportError, match=r"needs more packages .*: pip install 'downmix\[playground\]'"):
        playground.open_server([])
