"""One process, or several that `torchrun` started, each with its share of the batches.

The batches do not depend on the number of processes, so the results do not either.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The place of this process in its group: it takes every `count`-th batch, beginning with `rank`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """Return this process's place in torch's default group, if there is a group."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def batches(self, count: int, batch_size: int) -> Iterator[tuple[int, range]]:
        """Split `count` examples into batches, and yield number and rows of those of this process."""
        for number, start in enumerate(range(0, count, batch_size)):
            if number % self.count == self.rank:
                yield number, range(start, min(start + batch_size, count))

    def gather(self, own: dict[int, Any]) -> list[Any]:
        """Collect the results of all processes, in the order of the batches.

        If the result of a batch is an exception, every process raises it.

        Args:
            own: the results of this process by the number of the batch.
        """
        everyone: list[Any] = [own]
        if self.count > 1:
            everyone = [None] * self.count
            torch.distributed.all_gather_object(everyone, own)
        merged = {number: result for each in everyone for number, result in each.items()}
        for number in sorted(merged):
            if isinstance(merged[number], Exception):
                raise merged[number]
        return [merged[number] for number in sorted(merged)]

    def first(self, compute: Callable[[], T]) -> T:
        """Compute something in the first process only, and return its result in all of them."""
        found: list[Any] = [compute() if self.rank == 0 else None]
        if self.count > 1:
            torch.distributed.broadcast_object_list(found)
        result: T = found[0]
        return result

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


def best_device() -> str:
    """Return the fastest kind of device of this machine: cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def end_with_parent() -> None:
    """End this process, started by `multiprocessing`, when its parent ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def torchrun_group(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the group of processes, if `torchrun` started one; yield this process and its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(), torch.device(device)
        return
    on_gpus = device.startswith("cuda")
    local = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device(device)
    if on_gpus:
        torch.cuda.set_device(local)
    # PyTorch imports this module when something first needs it. A group that is there by then stays in the
    # defaults of its functions, so that the threads of gloo outlive `destroy_process_group`. If one of them
    # frees a tensor while Python ends, it aborts the process.
    from torch.distributed.nn import functional  # noqa: F401

    torch.distributed.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield Processes.current(), local
        torch.distributed.barrier()  # gloo of torch 2.6 may hang without
    finally:
        torch.distributed.destroy_process_group()
