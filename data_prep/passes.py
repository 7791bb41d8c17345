"""A pass over the text: units of work, done by this process's share of them, here or in several processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, starmap
from typing import Any, Protocol

from tqdm import tqdm

from data_prep.cleaning import Cleaner, CleaningConfig
from data_prep.inputs import Document, Part, Reading, documents
from data_prep.workplace import Units


@dataclass(frozen=True)
class TextUnit:
    """What every pass reads in the same way."""

    parts: list[Part]
    reading: Reading
    cleaning: CleaningConfig

    @property
    def size_bytes(self) -> int:
        return sum(part.end - part.start for part in self.parts)

    def documents(self, cleaner: Cleaner) -> Iterator[Document]:
        """Those that cleaning leaves, in order; those without text too. Raises InputError naming file and line."""
        raw = chain.from_iterable(documents(part, self.reading) for part in self.parts)
        return (document for document in map(cleaner.clean, raw) if document is not None)


class Worker(Protocol):
    """Does units in whatever process it is sent to."""

    @property
    def finished(self) -> Units: ...

    def do(self, number: int, unit: TextUnit) -> None:
        """Write a unit into `finished`."""


def do_units(worker: Worker, units: list[TextUnit], numbers: Sequence[int], workers: int) -> None:
    """Those of the numbered units that are not done yet, in this process or several."""
    left = [number for number in numbers if not worker.finished.is_done(number)]
    total_bytes = sum(units[number].size_bytes for number in numbers)
    done_bytes = total_bytes - sum(units[number].size_bytes for number in left)
    progress = tqdm(total=total_bytes, initial=done_bytes, unit="B", unit_scale=True, disable=None)
    with progress:
        done = in_order(worker.do, [(number, units[number]) for number in left], workers)
        for number, _ in zip(left, done, strict=True):
            progress.update(units[number].size_bytes)


def in_order(work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """What `work` returns for each tuple of arguments, and the first error, in the order of the calls; here or from
    several processes. Raises ValueError when one dies."""
    if workers == 1 or len(calls) < 2:
        yield from starmap(work, calls)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(calls)), context) as pool:
        try:
            yield from pool.map(work, *zip(*calls, strict=True))
        except BrokenProcessPool:
            raise ValueError(
                "a worker process died, perhaps for lack of memory; try fewer --workers. The same command goes on from"
                " the last finished unit"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # units under way are waited for, so that nobody writes afterwards
            raise
