from pathlib import Path

import pytest

from downmix.cli import main
from downmix.train import Recipe, read_recipe, recipe_names


def test_recipes_come_with_the_package_and_hold_good_fields() -> None:
    assert {"digits", "pix_paper_imagenet", "pix_readme_imagenet"} <= set(recipe_names())
    for name in recipe_names():
        Recipe(**read_recipe(name))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"crop_scale": 2.0}, "crop_scale must be between 0 and 1, got 2.0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"sched": "plateau"}, "sched must be one of 'constant', 'cosine', .* got 'plateau'"),
        ({"interpolation": "box"}, "interpolation must be one of 'bilinear', .*, 'random', got 'box'"),
        ({"mixup": 0.1, "batch_size": 9}, "batch_size must be even, got 9"),
        ({"clip_grad": float("nan")}, "clip_grad must be at least 0, got nan"),
    ],
)
def test_a_bad_field_is_named(field: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**field)  # type: ignore[arg-type]


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ValueError, match="device must be cpu, cuda, cuda:N or auto, got 'gpu'"):
        Recipe(device="gpu").torch_device()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "cifar"], "there is no recipe 'cifar'; give the path of a YAML file, or camvid_pspnet"),
        (["--recipe", "FILE"], "unknown field 'epohcs'; did you mean epochs?"),
        (["--epohcs", "3"], "did you mean --epochs?"),
        (["--model", "pix_resnet29_smal"], "did you mean pix_resnet29_small"),
        (["--opt", "sdg"], "opt must be an optimiser of timm, got 'sdg'"),
        (["--init", "nowhere.pt"], "nowhere.pt"),
        (["--resume", "autp"], "there is no checkpoint autp; --resume takes auto, or the path of a .pt file"),
    ],
)
def test_the_command_answers_in_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("epohcs: 3\n")
    arguments = [word.replace("FILE", str(tmp_path / "recipe.yaml")) for word in arguments]
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments, "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
