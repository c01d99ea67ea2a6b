"""`benchmarks.tune`, in Triton's interpreter."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from downmix.tools._timing import wall_ms

tune = pytest.importorskip("benchmarks.tune")
interpreter = pytest.importorskip("tests.kernels.interpreter")

CASES = [
    *tune.soft_pool_cases(1, torch.float32, [(2, 4, 3, 2, 1)]),
    *tune.pix_cases(1, torch.float32, [(6, 2, 3)]),
]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if tune.DEVICE.type == "cpu":
        interpreter.compute_as_compiled_code(monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_choices_give_the_same(case: Any) -> None:
    first, *_, last = case.choices.items()
    assert len(tune.launches(case._replace(choices=dict([first, last])))) == 2


def test_no_launch_twice() -> None:
    case = tune.distinct(CASES[0])
    assert 1 < len(case.choices) < len(CASES[0].choices)
    twice = case._replace(choices=case.choices | {"again": case.choices[tune.PRESENT]})
    assert list(tune.distinct(twice).choices) == list(case.choices)


def test_a_table_of_all_choices_and_a_copy() -> None:
    case = CASES[-2]
    case = case._replace(choices=dict(list(case.choices.items())[:2]))
    times = tune.time_case(case, rounds=1, time_call=wall_ms)
    assert list(times) == [*case.choices, "copy"]
    assert min(times.values()) > 0
    assert tune.table(case, times).row_count == 3


def test_a_choice_that_gives_something_else_is_not_timed() -> None:
    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        planned.append((lambda *tensors: tensors[-1].zero_(), ()))
        yield

    planned = [CASES[-2].plan()]
    case = CASES[-2]._replace(plan=lambda: planned[-1], choices={tune.PRESENT: contextlib.nullcontext, "zeros": broken})
    with pytest.raises(SystemExit, match="zeros gives something else than as it is"):
        tune.launches(case)
