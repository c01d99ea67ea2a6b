"""The report: one page that holds everything, escapes everything, and says what is missing."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from downmix.tools._report import predictions
from downmix.tools.report import report
from downmix.train import train
from downmix.train.classification import Classification
from downmix.train.images import Images, ImageStream
from tests.refused import refused
from tests.tools.test_results import BENCH, COMPARISON, first_row, first_top1, make_run
from tests.train.helpers import make_folders, quick_recipe

EVIL = "<script>alert(1)<"  # as a class folder can be called
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] in ("script", "style"):
            self.scripts.append(data)
        else:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> list[str]:
        return [str(attributes["aria-labelledby"]) for attributes in self.of("section")]

    @property
    def figures(self) -> list[dict]:
        return [json.loads(script) for script in self.scripts if script.startswith('{"data"')]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of a moment, on classes that mean no good."""
    root = tmp_path_factory.mktemp("report")
    data = make_folders(root / "data", classes=("ant", EVIL), count=10)
    train(quick_recipe(data, model="tiny_pix_resnet", epochs=2, image_size=16), root / "run", on_step=lambda *_: None)
    return root / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    report([run, COMPARISON, BENCH], output=run.parent / "out" / "report.html")
    return Page(run.parent / "out" / "report.html")


class TestPage:
    def test_has_every_section(self, page: Page) -> None:
        wanted = ["runs", "compare", "bench", "tradeoff", "curves", "mistakes", "classes", "attention", "probabilities"]
        assert page.sections == [*wanted, "cost"]
        assert [link["href"] for link in page.of("a")] == ["#content", *(f"#{name}" for name in page.sections)]

    def test_asks_nothing_of_any_network(self, page: Page) -> None:
        for tag, attributes in page.tags:
            for name in ("src", "href", "action", "poster", "srcset"):
                assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        (policy,) = (str(meta["content"]) for meta in page.of("meta") if "http-equiv" in meta)
        assert "default-src 'none'" in policy
        assert len(re.findall("sha256-", policy)) == 2
        assert sum("plotly.js v" in script for script in page.scripts) == 1

    def test_names_are_harmless(self, page: Page, run: Path) -> None:
        assert EVIL in page.text
        assert EVIL not in (run.parent / "out" / "report.html").read_text()
        kinds = [attributes.get("type") for attributes in page.of("script")]
        assert kinds == ["application/json"] * len(page.figures) + [None, None]
        drawn = json.dumps(page.figures)
        assert "&lt;script&gt;alert(1)&lt;" in drawn  # Plotly reads tags
        assert EVIL not in drawn

    def test_tables_and_pictures_say_what_they_are(self, page: Page) -> None:
        tables = len(page.of("table"))
        assert len(page.of("caption")) == tables >= 9
        assert {header.get("scope") for header in page.of("th")} == {"col", "row"}
        assert all(image["alt"] for image in page.of("img"))
        plots = [each for each in page.of("div") if each.get("class") == "plot"]
        assert len(plots) == len(page.figures) >= 9
        assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)

    def test_figures_are_those_of_the_runs(self, page: Page, run: Path) -> None:
        assert first_top1() in page.text
        assert "are unknown" not in page.text  # the training's operations were counted
        least = f"{float(first_row(BENCH)['min_ms']):.2f}"
        assert f"resnet50 inference eager channels_last no 1 {least} ×1.00" in page.text
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        assert f"lr {recipe['lr']}" in page.text
        (right, count, top1) = re.search(
            r"(\d+) of (\d+) held-out images are right: top-1 ([\d.]+) %", page.text
        ).groups()  # type: ignore[union-attr]
        best = json.loads((run / "summary.json").read_text())["best_top1"]
        assert count == "4"
        assert float(top1) == pytest.approx(100 * best) == pytest.approx(25 * int(right))
        (matrix,) = (trace for figure in page.figures for trace in figure["data"] if trace["type"] == "heatmap")
        assert sum(map(sum, matrix["text"])) == 4
        assert matrix["text"][0][0] + matrix["text"][1][1] == int(right)


class Brightness(nn.Module):
    """Says class 1 the more surely the brighter the image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_surest_mistakes_come_first(is_stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "WORST", 3)
    task = Classification(quick_recipe(make_folders(tmp_path / "data"), batch_size=2))
    levels = [0.1, 0.9, 0.5, -0.2, 0.7, 0.3, 2.0, 2.0, 2.0]
    samples = [(torch.full((3, 8, 8), level), 0) for level in levels]
    task.val_data = ImageStream(samples, 2) if is_stream else Images(samples, 2)
    monkeypatch.setattr(Images, "__getitem__", lambda self, index: samples[index])
    images = predictions.held_out(task, limit=6 if is_stream else None)
    found = predictions.predict(Brightness(), task, images)
    brightest = [0.9, 0.7, 0.5] if is_stream else [2.0, 2.0, 2.0]
    assert [sample.image.mean().item() for sample in found.worst] == pytest.approx(brightest)
    assert found.worst[0].score == pytest.approx(torch.sigmoid(torch.tensor(2 * brightest[0])).item())
    assert [sample.name for sample in found.worst] == [f"image {i}" for i in ((1, 4, 2) if is_stream else (6, 7, 8))]
    assert found.confusion.tolist() == [[1, 5 if is_stream else 8], [0, 0]]
    assert len(found.examples) == 6


def test_what_is_missing_is_said(run: Path, tmp_path: Path) -> None:
    """Weights are gone here, data there; all the rest is shown."""
    lonely = make_run(tmp_path / "lonely", "tiny_net", 0.5)
    (tmp_path / "lonely" / "epochs.csv").write_text("epoch,train_loss,lr,seconds,top1,val_loss\n1,nan,0.1,2,0.5,\n")
    output = report([lonely, run], output=tmp_path / "report.html", data="nowhere")
    page = Page(output)
    assert f"{lonely} has no best.pt; copy it there, or train again" in page.text
    assert "no data set or folder 'nowhere'" in page.text
    assert "say where the data lie with --data or --data_dir" in page.text
    assert "Operations of tiny_net are unknown" in page.text
    shown = ["runs", "tradeoff", "curves", "mistakes", "classes", "attention", "probabilities", "cost"]
    assert page.sections == shown
    assert "Layers of tiny_pix_resnet on" in page.text


def test_data_have_moved(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, moved := tmp_path / "run")
    recipe = yaml.safe_load((moved / "recipe.yaml").read_text())
    (moved / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data_dir": "gone"}))
    for data, is_gone in ((str(run.parent / "data"), False), (None, True)):
        page = Page(report([moved], output=tmp_path / "report.html", data=data))
        assert ("the data folder gone does not exist; check data_dir" in page.text) == is_gone


def test_without_grad_cam(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    page = Page(report([run], output=tmp_path / "report.html", limit=3))
    assert "this needs more packages (import of pytorch_grad_cam halted" in page.text
    assert "pip install 'downmix[explain]'" in page.text
    assert re.search(r"\d of 3 held-out images, evenly spaced among 4, are right", page.text)
    assert "cost" in page.sections


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_without_what_a_report_needs(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ["report", str(tmp_path), "--output", str(tmp_path / "report.html")]
    refused(words, r"this needs more packages .*: pip install 'downmix\[report\]'", capsys)


def test_exported_files_and_data_of_other_classes(run: Path, tmp_path: Path) -> None:
    times = "min_ms,median_ms,p20_ms,p80_ms,min_ratio,median_ratio,device,threads,rounds,commit"
    (tmp_path / "exported.csv").write_text(
        f"runtime,batch_size,file,baseline,dtype,image_size,{times}\n"
        "onnxruntime,8,a.onnx,a.onnx,float32,32,3.25,4.0,3.5,5,1.0,1.0,cpu,2,15,abc\n"
    )
    other = make_folders(tmp_path / "other", classes=("a", "b", "c"), count=5)
    page = Page(report([tmp_path / "exported.csv", run], output=tmp_path / "report.html", data=str(other)))
    assert "a.onnx onnxruntime float32 8 3.25 ×1.00 4.00 ×1.00" in page.text
    assert "has 3 classes, and the network was trained on 2; say where the data lie" in page.text


def test_a_segmentation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "resnet18", 0.5, task="segmentation", segmentation={"classes": ["road", EVIL]})
    header = f"epoch,train_loss,lr,seconds,miou,pixel_accuracy,val_loss,iou/road,iou/{EVIL}"
    (run / "epochs.csv").write_text(f"{header}\n1,2.0,0.1,3,0.3,0.5,1.0,0.6,nan\n")
    page = Page(report([run], output=tmp_path / "report.html"))
    assert page.sections == ["runs", "curves", "segmentation", "cost"]
    assert f"road 60.00 {EVIL} –" in page.text
    assert "downmix validate" in page.text


def test_an_unfinished_comparison(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    for seed in (0, 1):
        make_run(folder.mkdir(exist_ok=True) or folder / f"n-seed{seed}", "n", 0.5 + seed / 10, seed=seed)
    (folder / "n-seed2").mkdir()
    (folder / "n-seed2" / "recipe.yaml").write_text("model: n\n")
    page = Page(report([folder], output=tmp_path / "report.html"))
    assert "its comparison did not end" in page.text
    assert "n-seed2 has not finished an epoch, and is left out" in page.text
    assert "55.00 ± 7.07" in page.text


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("1,abc,0.5,1.0", r"epochs\.csv is no table of `downmix train` \(could not convert string to float: 'abc'\)"),
        ("1,2.0", r"epochs\.csv has a row of another length than its first line; it may be cut off"),
    ],
)
def test_a_damaged_table_is_named(row: str, sentence: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "resnet29_small", 0.5)
    (run / "epochs.csv").write_text(f"epoch,train_loss,top1,val_loss\n{row}\n")
    with pytest.raises(ValueError, match=sentence):
        report([run], output=tmp_path / "report.html")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.csv"], r"nowhere\.csv"),
        ([str(COMPARISON.parent / "ops_cpu.csv")], "is no CSV file of `downmix compare` or `downmix bench`"),
        ([str(COMPARISON.parent)], r"has no epochs\.csv, compare\.csv or trainings"),
        ([str(COMPARISON), "--limit", "-1"], "limit must be 0, for all images, or more, got -1"),
        ([str(COMPARISON), "--device", "tpu9"], "device must be"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["report", *arguments], sentence, capsys)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(page: Page, run: Path) -> None:
    """Nothing complains, asks for anything or runs off a phone's screen; sorting and the switch work by keys."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    path, problems = run.parent / "out" / "report.html", []
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=["--disable-background-networking"]
        )
        sheet = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="light")
        sheet.set_default_timeout(120_000)
        sheet.on("console", lambda message: problems.append(message.text))
        sheet.on("pageerror", lambda error: problems.append(str(error)))
        sheet.on("dialog", lambda dialog: problems.append(dialog.message))
        sheet.on("request", lambda request: problems.append(request.url))
        sheet.goto(path.as_uri())
        for plot in sheet.locator(".plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for()
        assert sheet.evaluate("document.documentElement.scrollWidth") == 390
        table = sheet.locator("table", has_text="Accuracy of each class")
        table.locator("thead button").first.focus()
        for way, first in (("ascending", EVIL), ("descending", "ant")):
            sheet.keyboard.press("Enter")
            assert table.locator("thead th").first.get_attribute("aria-sort") == way
            assert table.locator("tbody th").first.inner_text() == first
        before = sheet.evaluate("getComputedStyle(document.body).backgroundColor")
        sheet.locator("#theme").press("Space")
        assert sheet.evaluate("getComputedStyle(document.body).backgroundColor") != before
        browser.close()
    assert problems == [path.as_uri(), *(problem for problem in problems if problem.startswith("data:"))]
