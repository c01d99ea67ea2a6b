"""The processes that train together: one alone, or those that torchrun started."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        device: what this process computes on.
        rank, size: its number, and how many there are. Only number 0 speaks and writes.
        control: the group over which processes agree without waiting for their GPUs.
        memory: the store of the torchrun that started this process, which those that it starts again see too.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None
    memory: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree(self, *flags: int) -> list[int]:
        """The highest of each flag over all processes, so that all of them do the same next."""
        if self.size == 1:
            return list(flags)
        highest = torch.tensor(flags)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.control)
        return highest.tolist()

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What each process has, by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where one process finds bad input within the block, all end, and the first alone says why.

        There must be nothing in it that waits for the other processes.
        """
        error: Exception | None = None
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError) as caught:
            error = caught
        reasons = [reason for reason in self.gather(error and (str(error) or type(error).__name__)) if reason]
        if reasons and not self.is_first:
            raise SystemExit(2) from error
        if reasons:
            raise error or ValueError(reasons[0])

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the first one's buffers: BatchNorm's statistics drift apart otherwise."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def remember(self, text: str) -> None:
        """Tells ``text`` to the processes that torchrun starts in place of these, should one die."""
        if self.memory:
            self.memory.set(f"downmix/remembered/{text}", "")

    def remembers(self, text: str) -> bool:
        """Whether this start of torchrun's was told ``text``, by whichever of its processes."""
        return bool(self.memory) and self.memory.check([f"downmix/remembered/{text}"])


def is_lost_process(error: Exception) -> bool:
    """Whether a process waited in vain for another one."""
    return "gloo/transport" in str(error)


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Joins the processes that torchrun started, if it did; leaves them at the end.

    Args:
        device: under torchrun, ``cuda`` becomes the GPU of this process's own number on its machine.
    """
    alone = "RANK" not in os.environ or "WORLD_SIZE" not in os.environ
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0 if alone else int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)  # events and random states are those of the current one
    if alone:
        yield World(device)
        return
    store, rank, size = next(dist.rendezvous("env://"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_of_this_start(store, rank, size), rank=rank, world_size=size)
    try:
        control = dist.new_group(backend="gloo")
        yield World(device, dist.get_rank(), dist.get_world_size(), control, store)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise ConnectionError("another process of the training ended; it, or torchrun, says why") from error
    finally:
        dist.destroy_process_group()


def _of_this_start(store: Any, rank: int, size: int) -> Any:
    """A part of ``store`` for these processes alone.

    torchrun lends the processes that it starts again the store of those that died, and what these left there leads to
    addresses where nobody is. The first process makes up a name, and says go to those who answered to it.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("downmix/start", mine)
        answers = [store.get(f"downmix/{mine}/{other}").decode() for other in range(1, size)]
        store.set(f"downmix/{mine}/go", " ".join(answers))
        return dist.PrefixStore(mine, store)
    while True:
        start = store.get("downmix/start").decode()
        store.set(f"downmix/{start}/{rank}", mine)
        try:
            store.wait([f"downmix/{start}/go"], timedelta(seconds=1))
        except dist.DistStoreError:  # not yet, or the name is of a start that came to nothing
            continue
        if mine in store.get(f"downmix/{start}/go").decode().split():
            return dist.PrefixStore(start, store)
        time.sleep(0.1)
