"""How Triton kernels are planned, launched and compiled for GPUs, none of which needs one."""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from downmix.ops._windows import output_sizes

from .random_cases import DEVICE

_common = pytest.importorskip("downmix.kernels.triton._common")
_overlapping_plan = pytest.importorskip("downmix.kernels.triton._overlapping_plan")
_plan = pytest.importorskip("downmix.kernels.triton._plan")


def test_old_gpus_get_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (6, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    say = _common.too_old.__wrapped__
    assert say(torch.device("cuda:1")) == "Triton needs a GPU of compute capability 7.0 or more, and cuda:1 has 6.1"
    capability = (7, 0)
    assert say(torch.device("cuda:1")) is None


KERNELS = {
    "_add_relu_mean_kernel",
    "_pix_probabilities_kernel",
    "_gradient_of_linear_kernel",
    "_pick_or_mix_forward_kernel",
    "_pick_or_mix_backward_kernel",
    "_gradient_of_logits_kernel",
    "_gradient_of_x_kernel",
    "_soft_pool_forward_kernel",
    "_soft_pool_backward_kernel",
    "_soft_pool_statistics_kernel",
    "_soft_pool_gather_kernel",
    "soft_pool_rows_forward_kernel",
    "soft_pool_rows_backward_kernel",
}


def run_without_the_interpreter(module: str, *arguments: str) -> list[str]:
    """What a module of these tests prints, which has Triton compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.kernels.{module}", *arguments]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def test_a_second_launch_gives_the_driver_what_triton_gave_it() -> None:
    assert set(run_without_the_interpreter("launch_triton")) == KERNELS


def test_every_kernel_compiles_for_gpus() -> None:
    lines = [line.split("\t") for line in run_without_the_interpreter("compile_triton")]
    assert {name for name, *_ in lines} == KERNELS
    assert {arch for _, arch, *_ in lines} == {"80", "90"}
    assert [line for line in lines if int(line[2]) > 0] == []  # no spilled registers
    # The last maps of PiX, and those of windows, whose sizes 4 divides but not 16, are loaded 16 bytes at a time.
    assert {name: wide for name, *_, wide in lines if "gather" not in name and "statistics" not in name} == {
        "_pick_or_mix_forward_kernel": "16",
        "_pick_or_mix_backward_kernel": "16",
        "_gradient_of_logits_kernel": "16",
        "_gradient_of_x_kernel": "16",
        "_soft_pool_forward_kernel": "16",
        "_soft_pool_backward_kernel": "16",
        "soft_pool_rows_forward_kernel": "16",
        "soft_pool_rows_backward_kernel": "16",
        "_add_relu_mean_kernel": "16",
        "_pix_probabilities_kernel": "16",
        "_gradient_of_linear_kernel": "16",
    }


def test_compiled_code_computes_what_it_should() -> None:
    """Some of both test files, in which Triton's interpreter runs otherwise; ``run_ptx`` takes all of them."""
    some = "random_cases and 0 or no_window_has and 3 or linear and 5-9-torch.float32"
    files = (f"tests/kernels/{name}.py" for name in ("test_triton", "test_triton_layers"))
    lines = run_without_the_interpreter("run_ptx", *files, "-p", "no:xdist", "-k", some)
    ran = {line.split(":")[0] for line in lines if "times as many in sectors" in line}
    assert ran == KERNELS


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "by_rows"),
    [
        ([3, 3], [2, 2], [1, 1], True),
        ([5, 5], [1, 1], [1, 1], True),
        ([3], [1], [1], True),
        ([2, 2], [2, 2], [1, 1], False),  # side by side
        ([3, 3], [2, 2], [2, 2], False),
        ([2, 3], [3, 1], [1, 1], False),  # a gap between rows
        ([7, 7], [2, 2], [1, 1], False),  # more than registers hold
        ([3, 3, 3], [2, 2, 2], [1, 1, 1], False),
    ],
)
def test_which_windows_are_taken_row_by_row(
    kernel: list[int], stride: list[int], dilation: list[int], by_rows: bool
) -> None:
    x = torch.empty(1, 2, *[20] * len(kernel))
    windows = (kernel, stride, [0] * len(kernel), dilation)
    sizes = output_sizes(x.shape[2:], *windows, False)
    assert _overlapping_plan.fits(_plan.Plan([x], [torch.empty(1, 2, *sizes)], *windows, loads=4)) == by_rows


def test_launches_keep_what_was_compiled_for_a_device_and_an_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = types.SimpleNamespace(get_current_stream=lambda device: 7)
    monkeypatch.setattr(_common, "driver", types.SimpleNamespace(active=stream))
    calls: list[tuple[object, ...]] = []

    def run(x: int, y: int, z: int, stream: int, *args: object) -> None:
        calls.append(("launched", (x, y, z), stream, args))

    class Kernel:
        arg_names = ("x_ptr", "size", "BLOCK")

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., types.SimpleNamespace]:
            def compile(*args: object, **options: object) -> types.SimpleNamespace:
                calls.append(("compiled", grid, args[1:], options["BLOCK"]))
                return types.SimpleNamespace(run=run, function="function", packed_metadata="metadata")

            return compile

    launch = _common.Launch(Kernel(), 7, [64], {"BLOCK": 16})
    memory = torch.zeros(64, device=DEVICE)
    for x in (memory, memory, memory[1:], memory):
        launch(x)
    compiled = "compiled", (7, 1, 1), (64,), 16
    given = "function", "metadata", None, None, None, memory.data_ptr(), 64, 16
    launched = "launched", (7, 1, 1), 7, given
    assert calls == [compiled, launched, compiled, launched]
