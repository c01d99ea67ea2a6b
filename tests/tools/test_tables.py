import csv
from pathlib import Path

import pytest
from PIL import Image

from downmix.cli import main
from downmix.tools.tables import Figure


def test_every_figure_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tables", "--output", str(tmp_path / "tables.csv"), "--plot", str(tmp_path / "figure.png")])
    printed = capsys.readouterr().out
    assert "A module at 512×112×112 (PiX supplement, table 1)" in printed
    rows = list(csv.DictReader((tmp_path / "tables.csv").read_text().splitlines()))
    by_item = {(row["item"], row["quantity"]): row for row in rows if "Networks" in row["table"]}
    assert by_item["pix_resnet50", "GMACs"]["ours"] == "3.18847"
    for name in ("resnet50", "pix_resnet50", "resnet101", "pix_resnet101", "resnet152", "pix_resnet152"):
        assert by_item[name, "GMACs"]["verdict"] in ("rounded", "cut off"), name
        assert by_item[name, "M params"]["verdict"] in ("rounded", "cut off"), name
    assert by_item["dwp_resnet50", "GMACs"]["verdict"] == "not derivable from the source"

    modules = [row for row in rows if "table 1" in row["table"]]
    assert len(modules) == 24
    assert {row["verdict"] for row in modules if row["quantity"] == "MB"} == {"exact"}
    assert {row["verdict"] for row in modules if row["quantity"] != "MB"} == {"rounded", "cut off"}
    example = {row["item"]: (row["printed"], row["ours"]) for row in rows if "Worked" in row["table"]}
    assert list(example.values()) == [("1275", "1275"), ("523", "573"), ("748", "798")]
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(
    ("printed", "count", "verdict", "ours", "difference"),
    [
        ("4.12", 4_121_925_096, "rounded", "4.12193", "+0.00193"),
        ("3.18", 3_188_465_128, "cut off", "3.18847", "+0.00847"),
        ("3.20", 3_188_465_128, "differs", "3.18847", "-0.01153"),
        ("3.000", 3_000_000_000, "exact", "3.000000", "+0.000000"),
    ],
)
def test_how_ours_becomes_what_is_printed(printed: str, count: int, verdict: str, ours: str, difference: str) -> None:
    figure = Figure("a table", "an item", "GMACs", printed, count, 10**9)
    assert (figure.verdict, figure.ours, figure.difference) == (verdict, ours, difference)
