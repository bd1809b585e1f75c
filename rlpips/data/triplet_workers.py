"""Worker processes that make triplets."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from rlpips.data.triplet_maker import Chunk, EncodedTriplet, SkippedPhotos, TripletMaker
from rlpips.data.triplet_settings import TripletSettings
from rlpips.system.processes import end_with_parent

Method = Callable[[TripletMaker, Sequence[int]], Chunk]


class TripletWorkers:
    """Calls methods of a `TripletMaker` on many numbers, in worker processes or, with 0 workers, in this one.

    Attributes:
        skipped: the photos that could not be used so far.
    """

    def __init__(self, settings: TripletSettings, workers: int) -> None:
        self.skipped = SkippedPhotos()
        self._workers = workers
        if workers:
            if os.name == "posix":
                from multiprocessing import resource_tracker

                resource_tracker.ensure_running()  # if it starts later, it undoes `_interrupts_blocked`
            self._pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(settings,)
            )
        else:
            self._maker = TripletMaker(settings)

    def map(self, method: Method, chunks: Iterable[Sequence[int]]) -> Iterator[list[EncodedTriplet]]:
        """Yield the triplets of `method(maker, numbers)` for each chunk, in order; chunks may be endless."""
        for chunk in self._results(method, chunks):
            self.skipped.add(chunk.skipped)
            yield chunk.triplets

    def _results(self, method: Method, chunks: Iterable[Sequence[int]]) -> Iterator[Chunk]:
        if not self._workers:
            for numbers in chunks:
                yield method(self._maker, numbers)
            return
        chunks = iter(chunks)
        waiting: collections.deque[Future[Chunk]] = collections.deque()

        def submit(most: int) -> None:
            with _interrupts_blocked():
                for numbers in itertools.islice(chunks, most):
                    waiting.append(self._pool.submit(_call, method, numbers))

        submit(2 * self._workers)
        while waiting:
            result = waiting.popleft().result()
            submit(1)
            yield result

    def close(self) -> None:
        """Stop the workers; chunks that they have not begun are dropped."""
        if self._workers:
            self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let processes that start in this block ignore Ctrl-C: only the main process handles it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_maker: TripletMaker | None = None  # of this worker process


def _start(settings: TripletSettings) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _maker = TripletMaker(settings)


def _call(method: Method, numbers: Sequence[int]) -> Chunk:
    assert _maker is not None
    return method(_maker, numbers)
