import errno
import os
import pickle
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import timm
import torch
from torchmetrics import MetricCollection

from downmix.published import read_weights
from downmix.tools._trained import trained_network
from downmix.train import Epoch, Interrupted, checkpoint, train
from downmix.train._segmentation_pictures import create_palette, write_picture
from downmix.train.checkpoint import CheckpointError, find_newest, keep_as, read_checkpoint
from downmix.train.classification import Classification
from downmix.train.curves import draw_curves
from downmix.train.network import build_network
from downmix.train.validate import validate
from downmix.train.weights import check_classes, read_trained

from .helpers import make_folders, quick_recipe, run
from .test_resume import interrupted_at


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("data"), count=20)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(quick_recipe(data, model="tiny_plain", epochs=4, keep_every=2, ema_decay=0.5), folder)
    return folder


def test_what_is_kept(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()} - {"tensorboard"}
    assert names == {"step-00000012.pt", "step-00000016.pt", "best.pt", "epoch-0002.pt", "epoch-0004.pt"} | {
        *("best.safetensors", "last.safetensors", "recipe.yaml", "epochs.csv", "summary.json", "curves.png")
    }
    assert any((finished / "tensorboard").iterdir())
    saved = read_checkpoint(finished / "step-00000016.pt")
    assert saved["progress"]["epoch"] == 4
    assert saved["recipe"]["model"] == "tiny_plain"
    assert saved["versions"]["torch"] == torch.__version__.split("+")[0]
    network = timm.create_model("tiny_plain")
    network.load_state_dict(read_weights(finished / "last.safetensors"))
    for name, value in saved["ema"].items():
        assert torch.equal(network.state_dict()[name], value)


def test_validate_agrees_with_training(finished: Path) -> None:
    saved = read_checkpoint(finished / "step-00000016.pt")
    expected = saved["progress"]["history"][-1]["metrics"]
    assert validate(finished / "step-00000016.pt") == pytest.approx(expected)
    assert validate(finished / "last.safetensors", batch_size=3)["top1"] == pytest.approx(expected["top1"])
    assert validate(finished / "best.pt", weights="model") != pytest.approx(validate(finished / "best.pt"))
    with pytest.raises(ValueError, match="real labels belong to ImageNet's 50,000 validation images.*got 8"):
        validate(finished / "best.pt", real_labels=True)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_validate_takes_the_precision_of_the_training(amp: str, data: Path, tmp_path: Path) -> None:
    history = run(quick_recipe(data, epochs=1, amp=amp), tmp_path)
    losses = {kind: validate(tmp_path / "best.pt", amp=kind)["val_loss"] for kind in ("none", amp)}
    assert losses[amp] == pytest.approx(history[-1].metrics["val_loss"], rel=1e-9)
    assert losses["none"] != pytest.approx(losses[amp], rel=1e-9)
    assert validate(tmp_path / "best.pt")["val_loss"] == losses["none" if amp == "fp16" else amp]  # slow on a CPU


def test_validate_keeps_as_many_channels_as_the_epoch_did(data: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"epochs": 3, "keep_every": 1, "fbs_density": 0.3, "fbs_epochs": 2, "fbs_l1": 1e-3}
    history = run(quick_recipe(data, model="tiny_fbs", **fields), tmp_path)
    for number, epoch in enumerate(history, 1):
        assert validate(tmp_path / f"epoch-000{number}.pt") == pytest.approx(epoch.metrics)
    assert validate(tmp_path / "last.safetensors") == pytest.approx(history[-1].metrics)


@pytest.mark.parametrize("use", [validate, partial(trained_network, None)])
def test_a_checkpoint_is_read_once(use: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, paths = torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **options: paths.append(path) or real(path, **options))
    use(finished / "best.pt")
    assert paths == [finished / "best.pt"]


def flipped(path: Path) -> bytes:
    """The content of a checkpoint with a byte of a tensor turned over."""
    content = bytearray(path.read_bytes())
    content[content.index(read_checkpoint(path)["model"]["first.weight"].numpy().tobytes())] ^= 255
    return bytes(content)


@pytest.mark.parametrize("use", [validate, partial(trained_network, None)])
def test_a_damaged_checkpoint_is_not_used(use: Any, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(flipped(finished / "best.pt"))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        use(tmp_path / "best.pt")


def test_safetensors_with_damaged_metadata_get_a_sentence(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "best.safetensors").read_bytes()
    for before, after in ((b'[\\"ant', b'{\\"ant'), (b'\\"epochs\\": 4', b'\\"epochs\\": 0')):
        assert before in whole
        (tmp_path / "best.safetensors").write_bytes(whole.replace(before, after))
        with pytest.raises(CheckpointError, match=r"best.safetensors: what it says of its training can't be read"):
            validate(tmp_path / "best.safetensors")


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_data_with_other_classes_are_refused(name: str, finished: Path, tmp_path: Path) -> None:
    make_folders(tmp_path, ("ant", "cat"), count=20)
    sentence = rf"{name}.* calls class 1 'bee', these data 'cat'; give data with the same classes, named alike"
    with pytest.raises(ValueError, match=sentence):
        validate(finished / name, data=str(tmp_path))
    if name == "best.pt":
        with pytest.raises(ValueError, match="calls class 1 'bee', these data 'cat'"):
            run(quick_recipe(tmp_path, model="tiny_plain", ema_decay=0.5), resume=str(finished / name))


def test_classes_that_have_no_names_are_anyone_s() -> None:
    for before, now in (([], ["a", "b"]), (["0", "1"], ["a", "b"]), (["a", "b"], ["0", "1"]), (["a"], ["a"])):
        check_classes(before, now, Path("best.pt"))
    with pytest.raises(ValueError, match="calls class 1 'b', these data nothing"):
        check_classes(["a", "b"], ["a"], Path("best.pt"))


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_starts_from_weights_with_another_classifier(name: str, finished: Path) -> None:
    recipe = quick_recipe("x", model="tiny_plain", init=str(finished / name))
    given = read_weights(finished / name)
    for classes in (2, 3):
        state = build_network(recipe, num_classes=classes).state_dict()
        assert torch.equal(state["first.weight"], given["first.weight"])
        assert state["fc.weight"].shape == (classes, 4)
    with pytest.raises(ValueError, match="does not fit TinyNet, .*missing: norm.bias, .* and 2 more$"):
        build_network(quick_recipe("x", init=str(finished / name)), num_classes=2)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile_was_here",)


def test_loading_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile(), "recipe": {}}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": Hostile()}, protocol=2))
    for read in (read_checkpoint, read_trained, validate):
        for name in ("zip.pt", "plain.pt"):
            with pytest.raises(CheckpointError, match="could run code|can't be read"):
                read(tmp_path / name)
    assert not (tmp_path / "hostile_was_here").exists()


def test_a_broken_checkpoint_is_skipped(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "step-00000012.pt").read_bytes()
    (tmp_path / "step-00000001.pt").write_bytes(whole)
    (tmp_path / "step-00000002.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "step-00000003.pt").write_bytes(flipped(finished / "step-00000012.pt"))
    (tmp_path / "step-00000004.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "step-00000005.pt")
    warnings: list[str] = []
    found = find_newest(tmp_path, warnings.append)
    assert found
    assert found[0].name == "step-00000001.pt"
    assert [text.split(" ")[0].rpartition("/")[2] for text in warnings] == [f"step-0000000{i}.pt" for i in (5, 4, 3, 2)]
    assert "no checkpoint of `downmix train`" in warnings[0]
    assert "does not match its checksum" in warnings[2]
    assert find_newest(tmp_path / "nothing", warnings.append) is None


def test_a_link_to_nothing_and_a_folder_are_passed_over(data: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"model": "tiny_plain", "keep_last": 1}
    run(quick_recipe(data, **fields), tmp_path)
    (tmp_path / "step-00009000.pt").symlink_to("moved.pt")
    (tmp_path / "step-00009001.pt").mkdir()
    warnings: list[str] = []
    found = find_newest(tmp_path, warnings.append)
    assert found
    assert found[1]["progress"]["epoch"] == 1
    assert warnings == [f"{tmp_path}/step-00009000.pt can't be read (No such file or directory); trying an older one"]
    assert len(run(quick_recipe(data, epochs=2, **fields), tmp_path, resume="auto")) == 2
    assert [path.is_dir() for path in sorted(tmp_path.glob("step-*.pt"))] == [False, True]


@pytest.mark.parametrize("change", [{"position": None}, {"recipe": "of another program"}])
def test_what_lacks_a_part_is_no_checkpoint(change: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    state = read_checkpoint(finished / "best.pt") | change
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other.pt is no checkpoint of `downmix train`"):
        read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize(("best", "epoch", "newest"), [(4, 2, "best.pt"), (1, 2, "epoch-0002.pt")])
def test_of_what_is_kept_for_good_the_newest_is_taken(
    best: int, epoch: int, newest: str, finished: Path, tmp_path: Path
) -> None:
    state = read_checkpoint(finished / "best.pt")
    for name, number in (("best.pt", best), (f"epoch-{epoch:04d}.pt", epoch)):
        torch.save(state | {"progress": state["progress"] | {"epoch": number}}, tmp_path / name)
    (tmp_path / "step-00000016.pt").write_bytes(b"")
    found = find_newest(tmp_path, lambda text: None)
    assert found
    assert found[0].name == newest


def test_where_none_is_whole_training_begins_anew(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = quick_recipe(data, model="tiny_plain", epochs=4, keep_every=2, ema_decay=0.5)
    for path in finished.glob("*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    run(recipe, tmp_path, resume="auto")
    assert "holds no checkpoint that is whole; training begins anew" in " ".join(capsys.readouterr().err.split())
    assert read_checkpoint(tmp_path / "step-00000016.pt")["progress"]["epoch"] == 4


def test_going_back_to_an_older_checkpoint_leaves_the_later_ones(data: Path, finished: Path, tmp_path: Path) -> None:
    for path in finished.glob("*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("step-00000099.pt", ".step-00000098.pt.partial"):  # and what a death left of one
        (tmp_path / name).write_bytes(b"")
    recipe = quick_recipe(data, model="tiny_plain", epochs=4, ema_decay=0.5, checkpoint_every_steps=3, keep_last=1)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path, resume=str(tmp_path / "epoch-0002.pt"), on_step=interrupted_at(11))
    assert [path.name for path in tmp_path.glob("*step-*.pt*")] == ["step-00000011.pt"]


class FullDisk:
    """A file with room for a few bytes."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def write(self, data: bytes) -> int:
        if self.file.tell() > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick_recipe(data, model="tiny_plain", epochs=3)
    real, writes = torch.save, []

    def save(state: Any, file: IO[bytes]) -> None:
        writes.append(file)
        real(state, FullDisk(file) if len(writes) == 2 else file)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    with pytest.raises(CheckpointError, match=r"step-00000008.pt can't be written .*No space left.*--resume auto"):
        run(recipe, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["best.pt", "step-00000004.pt"]
    assert not list(tmp_path.glob(".*partial"))
    run(recipe, tmp_path, resume="auto")
    assert read_checkpoint(max(tmp_path.glob("step-*.pt")))["progress"]["epoch"] == 3


def test_a_copy_is_as_safe_as_what_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    path, flushed = tmp_path / "step-00000001.pt", []
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_size))
    keep_as(path, "best.pt")
    assert (tmp_path / "best.pt").read_bytes() == path.read_bytes()
    assert flushed[0] == 100


class NeverBetter(Classification):
    def compute(self, metrics: MetricCollection) -> dict[str, float]:
        return {"top1": 0.5}


def test_weights_that_are_the_last_and_the_best_are_written_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick_recipe(data, model="tiny_plain", epochs=2, keep_every=1)
    real, epochs = checkpoint.save, []
    monkeypatch.setattr(checkpoint, "save", lambda state, facts: epochs.append(facts["epoch"]) or real(state, facts))
    run(recipe, tmp_path, task=NeverBetter(recipe))
    assert epochs == ["1", "2"]
    for name, epoch in (("best", 1), ("last", 2)):
        expected = read_checkpoint(tmp_path / f"epoch-000{epoch}.pt")["model"]
        found = read_weights(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("dies_before", ["best.pt", "best.safetensors", "last.safetensors", "epochs.csv"])
def test_a_death_among_the_files_of_an_epoch_is_made_good(
    dies_before: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick_recipe(data, model="tiny_plain", keep_every=1)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.name == dies_before:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / dies_before).exists()
    run(recipe, tmp_path, resume="auto")
    files = ("step-00000004.pt", "best.pt", "epoch-0001.pt", "best.safetensors", "last.safetensors", "epochs.csv")
    assert [name for name in files if not (tmp_path / name).exists()] == []
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / name for name in files)}
    run(recipe, tmp_path, resume="auto")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_the_end_names_only_files_that_are_there(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = quick_recipe(data, model="tiny_plain", epochs=4, ema_decay=0.5)
    run(recipe, tmp_path, resume=str(finished / "step-00000016.pt"))
    results = capsys.readouterr().err.partition("results: ")[2].strip().removeprefix(f"{tmp_path}/").split(", ")
    assert {"epochs.csv", "summary.json", "curves.png"} <= set(results)
    assert [name for name in results if not (tmp_path / name).exists()] == []


def test_the_folder_of_another_training_is_left_alone(data: Path, finished: Path) -> None:
    before = (finished / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match="holds checkpoints of a training; go on with --resume auto"):
        run(quick_recipe(data), finished)
    with pytest.raises(ValueError, match="of another training and does not fit this one"):
        run(quick_recipe(data, model="tiny_resnet"), finished, resume="auto")
    assert (finished / "recipe.yaml").read_text() == before


def test_a_file_does_not_go_on_in_the_folder_of_another_training(data: Path, finished: Path, tmp_path: Path) -> None:
    run(quick_recipe(data), tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    recipe = quick_recipe(data, model="tiny_plain", epochs=6, ema_decay=0.5)
    with pytest.raises(ValueError, match="holds checkpoints of a training; go on with --resume auto, or give another"):
        run(recipe, tmp_path, resume=str(finished / "step-00000016.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_has_one_training_at_a_time(data: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(data)

    def on_step(done: int, total: int) -> None:
        with pytest.raises(ValueError, match=f"^another training writes into {tmp_path}; wait until it has ended, or"):
            run(recipe, tmp_path, resume="auto")

    train(recipe, tmp_path, on_step=on_step)
    run(recipe, tmp_path, resume="auto")


def test_a_folder_that_can_t_be_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"output must be a folder .* got .*file/out \(.*file is a file\); choose another"
    ):
        run(quick_recipe(data), tmp_path / "file" / "out")


def test_a_file_system_that_is_read_only_gets_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    monkeypatch.setattr(Path, "unlink", refuse)  # Linux answers so before it looks whether there is such a file
    with pytest.raises(CheckpointError, match=r"a can't be written \(.*Read-only file system\).*make room"):
        checkpoint.write_whole(tmp_path / "a", lambda file: None)


def test_pictures_say_too_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"curves.png can't be written .*No space left.*make room"):
        draw_curves([Epoch(1.0, 0.1, 1.0, {"top1": 0.5})], tmp_path / "curves.png")
    labels, image = torch.zeros(8, 8, dtype=torch.int64), torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"a.png can't be written .*No space left.*make room"):
        write_picture(tmp_path / "a.png", image, labels, labels, ["sky"], create_palette(1, []))
    assert not list(tmp_path.iterdir())
