import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import downmix
from downmix.cli import main
from downmix.layers.pools import POOLS
from downmix.tools._picture import draw_grid, read_picture
from downmix.tools.pool import ContrastLogit, reduce_picture
from tests.refused import refused

RED_WHITE_BLUE_BLACK = [[(255, 0, 0), (255, 255, 255)], [(0, 0, 255), (0, 0, 0)]]


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(3, 40, 60)


def colours(values: list, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=dtype))


def values(picture: torch.Tensor) -> list:
    return (picture.movedim(0, 2) * 255).round().int().tolist()


def saved(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.gif", "a.tif"])
def test_formats_that_keep_every_value_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    colours(RED_WHITE_BLUE_BLACK).save(tmp_path / name, **options)
    assert values(read_picture(tmp_path / name)) == [[list(pixel) for pixel in row] for row in RED_WHITE_BLUE_BLACK]


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("1", "a.png", [[[255], [0]]]),
        ("L", "a.png", [[[255], [0]]]),
        ("LA", "a.png", [[[255], [0]]]),
        ("P", "a.png", [[[255, 255, 255], [0, 0, 0]]]),
        ("RGBA", "a.png", [[[255, 255, 255], [0, 0, 0]]]),
        ("CMYK", "a.jpg", [[[255, 255, 255], [0, 0, 0]]]),
        ("YCbCr", "a.tif", [[[255, 255, 255], [0, 0, 0]]]),
    ],
)
def test_every_mode_becomes_greyscale_or_rgb(mode: str, name: str, expected: list, tmp_path: Path) -> None:
    white_black = colours([[[255] * 3, [0] * 3]]).resize((32, 16), Image.Resampling.NEAREST)
    white_black.convert(mode).save(tmp_path / name)
    picture = read_picture(tmp_path / name)
    assert values(picture[:, ::15, ::31])[0] == expected[0]


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    colours([[0, 1], [32768, 65535]], np.uint16).save(tmp_path / "a.png")
    assert torch.equal(read_picture(tmp_path / "a.png"), torch.tensor([[[0, 1], [32768, 65535]]]) / 65535)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([[(255, 0, 0, 255), (0, 0, 0, 0)]], [[[255, 0, 0], [255, 255, 255]]]),
        ([[(255, 0, 0, 51), (0, 0, 0, 153)]], [[[255, 204, 204], [102, 102, 102]]]),
    ],
)
def test_transparent_parts_stand_on_white(pixels: list, expected: list, tmp_path: Path) -> None:
    colours(pixels).save(tmp_path / "a.png")
    assert values(read_picture(tmp_path / "a.png")) == expected


def test_a_transparent_palette_colour_stands_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert values(read_picture(tmp_path / "a.png")) == [[[10, 20, 30], [255, 255, 255]]]


def test_a_camera_held_upright_gives_an_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    colours(RED_WHITE_BLUE_BLACK).save(tmp_path / "a.png", exif=exif)
    (red, white), (blue, black) = ([list(pixel) for pixel in row] for row in RED_WHITE_BLUE_BLACK)
    assert values(read_picture(tmp_path / "a.png")) == [[blue, red], [black, white]]


def test_each_method_s_result_is_its_module_s_and_so_are_the_figures(photo: torch.Tensor) -> None:
    found = {(one.method, one.mode): one for one in reduce_picture(photo, list(POOLS), times=2)}
    assert [name for name, mode in found if mode != "evaluation"] == list(POOLS)
    for (name, mode), one in found.items():
        options = {"logits": ContrastLogit()} if name == "lip" else {}
        pool = downmix.create_pool(name, 2, **options).train(mode == "training")
        torch.manual_seed(0)
        expected = pool(pool(photo[None])).detach()[0]
        assert torch.equal(one.picture, expected), one.label
        assert one.mean == pytest.approx(expected.double().mean().item(), rel=1e-5)
        spreads = [values.double().std(correction=0).item() for values in (expected, photo)]
        assert one.contrast == pytest.approx(spreads[0] / spreads[1], rel=1e-5)
        average = found["avg", ""].picture.double()
        assert one.from_average == pytest.approx((expected.double() - average).abs().mean().item(), abs=1e-6)


def test_draws_repeat_with_the_seed_alone_and_leave_torch_s_generator_alone(photo: torch.Tensor) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    alone = reduce_picture(photo, ["stochastic"], seed=1)[0].picture
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(reduce_picture(photo, ["s3", "stochastic"], seed=1)[2].picture, alone)
    assert not torch.equal(reduce_picture(photo, ["stochastic"], seed=2)[0].picture, alone)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "times", "expected"),
    [
        ((64, 300), 2, None, None, (16, 75)),
        ((90, 90), 2, None, None, (45, 45)),
        ((8, 300), 3, 2, None, (1, 74)),
        ((8, 300), 1, None, None, (8, 300)),
        ((9, 9), 3, 2, 2, (1, 1)),
    ],
)
def test_how_often_and_how_small(
    size: tuple[int, int], kernel_size: int, stride: int | None, times: int | None, expected: tuple[int, int]
) -> None:
    (one,) = reduce_picture(torch.rand(1, *size), ["max"], kernel_size, stride, times=times)
    assert one.picture.shape[1:] == expected


def test_the_grid_shows_each_pixel_as_a_square(photo: torch.Tensor, tmp_path: Path) -> None:
    small = torch.rand(3, 4, 8)
    draw_grid([("the picture", photo), ("small", small)], "both", tmp_path / "grid.png")
    grid = saved(tmp_path / "grid.png")[:, :, :3]
    square = 320 // 8
    shown = np.array(values(small)).repeat(square, 0).repeat(square, 1)
    for height in range(grid.shape[0] - 4 * square):
        if np.array_equal(grid[height : height + 4 * square, 352:672], shown):
            return
    pytest.fail("the pixels are not in the grid")


def test_the_command_prints_figures_and_writes_grid_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours((np.random.default_rng(0).random((30, 50)) * 255).tolist()).save(tmp_path / "a.png")
    arguments = ["--method", "soft", "s3", "lp", "--kernel_size", "3", "--seed", "5"]
    output, folder = tmp_path / "new" / "grid.png", tmp_path / "separate"
    main(["pool", str(tmp_path / "a.png"), *arguments, "--output", str(output), "--separate", str(folder)])
    printed = capsys.readouterr().out
    found = reduce_picture(read_picture(tmp_path / "a.png"), ["soft", "s3", "lp"], 3, seed=5)
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
    assert table == [
        [one.label, f"{one.mean:.3f}", f"{100 * one.contrast:.1f} %", f"{one.from_average:.4f}"] for one in found
    ]
    assert "a.png, 50×30 to 16×10, windows of 3×3; the picture's mean is 0." in printed
    assert "values above 1 are drawn as white" in printed
    assert f"picture: {output}" in printed
    assert saved(output).shape[1] > 3 * 320
    assert sorted(path.name for path in folder.iterdir()) == [
        "lp.png",
        "s3_evaluation.png",
        "s3_training.png",
        "soft.png",
    ]
    assert np.array_equal(saved(folder / "soft.png"), np.array(values(found[0].picture))[:, :, 0])


def test_the_picture_has_the_name_that_was_given(tmp_path: Path) -> None:
    colours((np.random.default_rng(0).random((6, 8)) * 255).tolist()).save(tmp_path / "a.png")
    main(["pool", str(tmp_path / "a.png"), "--method", "avg", "--output", str(tmp_path / "grid")])
    assert read_picture(tmp_path / "grid").shape[0] == 3


def test_a_file_s_name_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "[red]$_$.png"
    Image.new("L", (8, 8)).save(tmp_path / name)
    main(["pool", str(tmp_path / name), "--method", "avg", "--output", str(tmp_path / "[b]" / "$_$.png")])
    printed = capsys.readouterr().out
    assert f"{name}, 8×8 to 4×4" in printed
    assert "/[b]/$_$.png" in printed


def test_by_default_every_method_that_is_defined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours(np.random.default_rng(0).integers(256, size=(8, 8, 3)).tolist()).save(tmp_path / "a.png")
    for stride, missing in (("2", []), ("1", ["s3"])):
        main(["pool", str(tmp_path / "a.png"), "--stride", stride, "--output", str(tmp_path / "grid.png")])
        printed = re.findall(r"^│ (\w+)", capsys.readouterr().out, re.MULTILINE)
        assert list(dict.fromkeys(printed)) == [name for name in POOLS if name not in missing]


def test_a_picture_of_one_colour_has_no_contrast_to_keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (8, 8), 51).save(tmp_path / "a.png")
    main(["pool", str(tmp_path / "a.png"), "--method", "avg", "--output", str(tmp_path / "grid.png")])
    assert re.search(r"avg +│ +0.200 │ +– │ +0.0000", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.png"], "there is no file missing.png"),
        (["FOLDER"], "there is no file .*; give the path of a picture"),
        (["FOLDER/text.png"], "text.png can't be read as a picture: cannot identify image file"),
        (["FOLDER/cut.png"], "cut.png can't be read as a picture"),
        (["FOLDER/damaged.dds"], "damaged.dds can't be read as a picture"),
        (["FOLDER/float.tif"], "its values, from -1 to 2 of white, are no grey levels"),
        (["FOLDER/a.png", "--method", "hard"], "'max', 'avg', .*got 'hard'"),
        (["FOLDER/a.png", "--kernel_size", "9"], "a picture of 8×6 pixels is too small for windows of 9×9; choose"),
        (["FOLDER/a.png", "--times", "3"], "too small for windows of 2×2, 3 times over"),
        (["FOLDER/a.png", "--method", "s3", "--stride", "1"], "S3 pooling needs stride = kernel_size, got stride=1"),
        (["FOLDER/a.png", "--stride", "0"], "must be at least 1, got 2, 0 and None"),
        (["FOLDER/a.png", "--times", "0"], "must be at least 1, got 2, 2 and 0"),
        (["FOLDER/a.png", "--output", "FOLDER/a.mp3"], "output must be a picture that ends in one of"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    colours((np.random.default_rng(0).random((6, 8)) * 255).tolist()).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    colours([[-1.0, 2.0]], np.float32).save(tmp_path / "float.tif")
    Image.new("RGB", (8, 8)).save(tmp_path / "damaged.dds")
    content = bytearray((tmp_path / "damaged.dds").read_bytes())
    content[80:84] = bytes(4)  # what kind of pixels there are; Pillow answers with NotImplementedError
    (tmp_path / "damaged.dds").write_bytes(content)
    arguments = [word.replace("FOLDER", str(tmp_path)) for word in arguments]
    refused(["pool", "--output", str(tmp_path / "grid.png"), *arguments], sentence, capsys)


def test_lip_s_logits_are_twenty_times_the_contrast() -> None:
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0, 1, 1] = 0.9  # the mean of its 3×3 is 0.1
    logits = ContrastLogit()(x)
    assert logits.shape == x.shape
    assert logits[0, :, 1, 1].tolist() == pytest.approx([8, 8])  # 20·0.8 in one channel of two
    assert logits[0, :, 1, 0].tolist() == pytest.approx([1, 1])
