"""Trainings that are killed, and trainings of several processes."""

import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from downmix.cli import main
from downmix.train import Interrupted, Recipe, engine, train
from downmix.train.checkpoint import read_checkpoint
from downmix.train.data import TrainingBatches
from downmix.train.distributed import World
from downmix.train.engine import Training
from downmix.train.output import Output
from downmix.train.signals import Signals
from downmix.train.sources import load_data
from downmix.train.validate import validate
from tests import tiny_networks  # noqa: F401, for the processes started here

from .helpers import make_folders, quick_recipe, run
from .test_resume import assert_same, final_state

ROOT = Path(__file__).parents[2]
# Processes forked from a clean one, as what other tests started, threads above all, does not live on in a fork.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload([__name__])


def start(recipe: Recipe, output: Path) -> Any:
    process = server.Process(target=run, args=(recipe, output), kwargs={"resume": "auto"})
    process.start()
    return process


def finish(recipe: Recipe, output: Path) -> dict[str, Any]:
    process = start(recipe, output)
    process.join(60)
    assert process.exitcode == 0
    return final_state(output)


def test_killed_at_random_moments_it_ends_the_same(tmp_path: Path) -> None:
    """`python -m tests.train.kill_often` does this with more kills."""
    recipe = kill_recipe(make_folders(tmp_path / "data", count=20))
    finish(quick_recipe(recipe.data), tmp_path / "warm")  # so that the server is there
    begin = time.monotonic()
    undisturbed = finish(recipe, tmp_path / "undisturbed")
    kill_often(recipe, tmp_path / "killed", kills=4, longest=time.monotonic() - begin)
    assert_same(finish(recipe, tmp_path / "killed"), undisturbed)


def kill_recipe(data: Path) -> Recipe:
    fields = {"epochs": 6, "checkpoint_every_steps": 1, "keep_last": 3, "mixup": 0.2, "ema_decay": 0.9, "hflip": 0.5}
    return quick_recipe(data, batch_size=4, **fields)


def kill_often(recipe: Recipe, output: Path, kills: int, longest: float) -> None:
    """Starts the training again and again, kills it at a random moment, and reads every checkpoint it left."""
    chance = random.Random(0)
    for _ in range(kills):
        process = start(recipe, output)
        time.sleep(chance.uniform(0, longest))
        process.kill()
        process.join()
        for path in output.glob("*.pt"):
            read_checkpoint(path)


def run_command(
    arguments: list[str], processes: int = 1, restarts: int = 0, within: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    torchrun = ["torch.distributed.run", *options, "-m"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*within, sys.executable, "-m", *torchrun, "tests.train.with_tiny_networks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


# A file system of a few pages in a mount namespace of our own, whose content is copied out before it goes.
SMALL_DISK = 'mount -t tmpfs -o size=100k disk "$0" && { "$@"; status=$?; cp -r "$0/." "$KEPT"; exit $status; }'


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="needs a mount namespace, to have a small disk",
)
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data"), model="tiny_plain", epochs=20, keep_every=1)
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    monkeypatch.setenv("KEPT", str(kept))
    fields = [f"--{name}={getattr(recipe, name)}" for name in ("data", "model", "epochs", "keep_every", "image_size")]
    arguments = [*fields, "--batch-size=8", "--warmup-epochs=0", "--device=cpu", "--output", str(disk)]
    result = run_command(["train", *arguments], within=("unshare", "-rm", "sh", "-c", SMALL_DISK, str(disk)))
    assert result.returncode == 2, result.stderr
    assert re.search(r"can't be written \(\[Errno 28\] No space left .*make room", result.stderr)
    left = list(kept.glob("*.pt"))
    assert [path for path in left if read_checkpoint(path)]
    assert len(left) < 20
    run(recipe, kept, resume="auto")
    run(recipe, tmp_path / "undisturbed")
    assert_same(final_state(kept), final_state(tmp_path / "undisturbed"))


def losses(folder: Path) -> list[list[float]]:
    rows = list(csv.DictReader((folder / "epochs.csv").read_text().splitlines()))
    return [[float(row[name]) for name in ("train_loss", "val_loss", "top1")] for row in rows]


def test_two_processes_are_one_with_their_batch(tmp_path: Path) -> None:
    """BatchNorm would see half the batch; so a network without."""
    data = make_folders(tmp_path / "data", count=22)  # 8 held out, of which 5 and 4 … are each process's
    recipe = quick_recipe(data, model="tiny_plain", epochs=3, opt="sgd", lr=0.1, batch_size=8, accumulate=1)
    run(recipe, tmp_path / "one")
    fields = {name: value for name, value in vars(recipe).items() if value not in (None, "") and name != "segmentation"}
    arguments = [f"--{name}={value}" for name, value in fields.items()]
    result = run_command(["train", *arguments, "--batch-size=4", "--output", str(tmp_path / "two")], processes=2)
    assert result.returncode == 0, result.stderr
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    assert result.stdout.count("epoch 3:") == 1  # only the first process speaks
    assert len(read_checkpoint(tmp_path / "two" / "best.pt")["processes"]) == 2


class BesideAnother(World):
    """The first or second process of two, where the other one found ``OTHER`` bad."""

    OTHER: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.OTHER] if self.is_first else [self.OTHER, value]


def end_of(rank: int, data: str, resume: str = "") -> object:
    try:
        world = BesideAnother(torch.device("cpu"), rank, 2)
        recipe = quick_recipe(data)
        with world.together():
            found = engine._find_checkpoint(Output(None, recipe, world, Console()), resume)
        Training(recipe, world, Signals(), resumed=found is not None)
    except (ValueError, SystemExit) as end:
        return end.code if isinstance(end, SystemExit) else str(end).partition(";")[0]
    return "none"


def test_the_first_process_alone_says_what_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DistributedDataParallel", lambda network, device_ids: network)
    assert [end_of(rank, "nowhere") for rank in (0, 1)] == ["there is no data set or folder 'nowhere'", 2]
    assert [end_of(rank, "digits", "no.pt") for rank in (0, 1)] == ["there is no checkpoint no.pt", 2]
    monkeypatch.setattr(BesideAnother, "OTHER", "the other's data are missing")
    assert [end_of(rank, "digits") for rank in (0, 1)] == ["the other's data are missing", 2]


def test_a_checkpoint_holds_what_the_others_could_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DistributedDataParallel", lambda network, device_ids: network)
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20))
    first = BesideAnother(torch.device("cpu"), 0, 2)
    training = Training(recipe, first, Signals())
    monkeypatch.setattr(BesideAnother, "OTHER", ["3.png can't be read"])
    path = Output(tmp_path / "out", recipe, first, Console(quiet=True)).write_checkpoint(training.state)
    assert path
    assert read_checkpoint(path)["bad_images"] == ["3.png can't be read"]


def test_the_first_process_alone_says_what_validate_can_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folders(tmp_path / "data")
    run(quick_recipe(data), tmp_path / "out")
    second = BesideAnother(torch.device("cpu"), 1, 2)
    monkeypatch.setattr("downmix.train.validate.join", lambda device: nullcontext(second))
    other_classes, no_imagenet = {"data": str(tmp_path)}, {"real_labels": True}
    options: dict[str, Any]
    for options in (other_classes, no_imagenet):
        with pytest.raises(SystemExit) as end:
            validate(tmp_path / "out" / "best.pt", **options)
        assert end.value.code == 2


def end_among_two(rank: int, port: int, ends: Any, call: Callable[[], object]) -> None:
    group = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    try:
        call()
        ends.put((rank, "well"))
    except (ValueError, OSError, SystemExit) as end:
        ends.put((rank, str(end)))


def ends_of_two(call: Callable[[], object]) -> list[str]:
    """How ``call`` ends in each of two processes that torchrun would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = server.Queue()
    processes = [server.Process(target=end_among_two, args=(rank, port, ends, call)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(ends.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    return [found[rank] for rank in (0, 1)]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ("", r"output must be a folder that can be written, got .*out is a file"),
        ("recipe.yaml/x", "recipe.yaml can't be written"),
        ("tensorboard", "File exists.*tensorboard"),
    ],
)
def test_the_first_process_alone_says_where_it_can_not_write(bad: str, sentence: str, tmp_path: Path) -> None:
    recipe, output = quick_recipe(make_folders(tmp_path / "data", count=20)), tmp_path / "out"
    (output / bad).parent.mkdir(parents=True, exist_ok=True)
    (output / bad).write_text("")
    first, second = ends_of_two(partial(run, recipe, output))
    assert re.search(sentence, first)
    assert second == "2"


def test_processes_say_that_images_are_of_another_size(tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20), model="tiny_flat", image_size=9)
    for end in ends_of_two(partial(run, recipe)):
        assert end.startswith("tiny_flat can't process images of 9×9 pixels")


def test_a_process_says_that_it_lost_the_other_one(tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20))
    _, index = next(iter(TrainingBatches(32, recipe, World(torch.device("cpu"), rank=1, size=2))))[0]
    bad = load_data(recipe).train.items[index][0]
    bad.write_bytes(b"junk")
    first, second = ends_of_two(partial(run, recipe, tmp_path / "out"))
    assert first == "another process of the training ended; it, or torchrun, says why"
    assert str(bad) in second


def test_the_first_process_alone_says_that_there_is_no_score(tmp_path: Path) -> None:
    data = make_folders(tmp_path / "data")
    run(quick_recipe(data), tmp_path / "out")
    for path in data.rglob("*.png"):
        path.write_bytes(b"junk")
    first, second = ends_of_two(partial(validate, tmp_path / "out" / "best.pt", on_bad_image="skip"))
    assert first.startswith("none of the images can be read")
    assert second == "2"


def train_aloud(recipe: Recipe, folder: Path) -> None:
    with open(folder / f"said-{os.environ['RANK']}.txt", "w") as file:
        train(recipe, folder / "out", console=Console(file=file), on_step=lambda done, total: None)


def test_the_first_process_names_what_the_others_could_not_read(tmp_path: Path) -> None:
    data, names = make_folders(tmp_path / "data", count=15), ("ant/4", "ant/9", "bee/4")  # 1, 2 and 4 of the held out
    for name in names:
        (data / f"{name}.png").write_bytes(b"junk")
    recipe = quick_recipe(data, epochs=2, batch_size=4, on_bad_image="skip")
    assert ends_of_two(partial(train_aloud, recipe, tmp_path)) == ["well", "well"]
    first, second = ((tmp_path / f"said-{rank}.txt").read_text() for rank in (0, 1))
    assert [first.count(f"{name}.png can't be read") for name in names] == [1, 1, 1]
    assert "3 images could not be read" in first
    assert second == ""
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["bad_images"]) == 3


def train_until_told(recipe: Recipe, output: Path, told: Any) -> None:
    try:
        train(recipe, output, on_step=lambda done, total: told.set())
    except Interrupted as stop:
        sys.exit(stop.code)


def test_ctrl_c_finishes_the_step_and_writes(tmp_path: Path) -> None:
    recipe = quick_recipe(make_folders(tmp_path / "data", count=20), model="tiny_plain", batch_size=4, epochs=10_000)
    told = server.Event()
    process = server.Process(target=train_until_told, args=(recipe, tmp_path / "out", told))
    process.start()
    assert told.wait(60)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    saved = read_checkpoint(max((tmp_path / "out").glob("step-*.pt")))
    assert 0 < saved["progress"]["epoch"] + saved["progress"]["step"] < 10_000


WORKER = "import os, time; from downmix.train.data import _begin_worker; _begin_worker(0)"
WORKER += "; print(os.getpid(), flush=True); time.sleep(600)"
TRAINING = "import multiprocessing, time; server = multiprocessing.get_context('forkserver')"
TRAINING += f"; server.Process(target=exec, args=({WORKER!r},)).start(); time.sleep(600)"


def test_a_worker_ends_when_its_training_is_killed() -> None:
    """Also where it is the child of another process, the server, as is Python's way from 3.14 on."""
    with subprocess.Popen([sys.executable, "-c", TRAINING], cwd=ROOT, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout
        worker = int(training.stdout.readline())
        training.kill()
        try:
            training.communicate(timeout=20)  # until nobody has this pipe any more
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_s_exit_code(signum: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise Interrupted(signum)

    monkeypatch.setattr("downmix.tools.train.train", stop)
    with pytest.raises(SystemExit) as end:
        main(["train"])
    assert end.value.code == code
