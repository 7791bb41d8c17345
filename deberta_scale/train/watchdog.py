"""Ends a process that makes no progress, and says which rank is waited for.

The main thread says where it is with `enter`. A thread tells the place to the other ranks, through a connection of its
own to the store that the process group was formed with; another one looks at the time, and needs nobody. A rank that
hangs makes all others wait, so each that has waited long enough looks who is furthest behind before it ends.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from deberta_scale.train.distributed import EXIT_LOST

EXIT_HANGS = EXIT_LOST
_REPORT_SECONDS = 20.0
"""For saying what happened; a process that does not get through with it is ended all the same."""
_MISSED_BEATS = 4
"""After so many, a rank counts as not heard of."""


@dataclass(frozen=True)
class Place:
    """Where the main thread of a rank is."""

    step: int = 0
    """The one being made, the first being 1; 0 during the start."""
    phase: str = "start"
    number: int = 0
    """Of this place among all the process has been at: the fewer, the further behind."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}" if self.step else self.phase


@dataclass(frozen=True)
class Report:
    """What a rank tells of itself."""

    place: Place
    silent_seconds: float
    """Since it entered the place."""
    waits_in: str | None
    """The collective in which it waits for others, if it does."""
    beat: int = 0

    @staticmethod
    def read(text: bytes) -> "Report":
        values = json.loads(text)
        return Report(**values | {"place": Place(**values["place"])})

    def __str__(self) -> str:
        waiting = f", waiting in {self.waits_in}" if self.waits_in else ""
        return f"at {self.place}, for {self.silent_seconds:.0f} s{waiting}"


class _Here:
    """This process's place, which exists whether anybody watches or not."""

    place = Place()
    since = time.monotonic()
    watchdog: "Watchdog | None" = None


def enter(phase: str, step: int | None = None) -> None:
    """The main thread is about to begin this; `step` stays when it is not given."""
    before = _Here.place
    _Here.place = Place(before.step if step is None else step, phase, before.number + 1)
    _Here.since = time.monotonic()


def start(rank: int, world_size: int, hang_seconds: float, run_dir: Path) -> None:
    """Watch this process from now on, instead of any watchdog before."""
    stop()
    enter("start", step=0)
    _Here.watchdog = Watchdog(rank, world_size, hang_seconds, run_dir)


def stop() -> None:
    if _Here.watchdog is not None:
        _Here.watchdog.stop()
        _Here.watchdog = None


class Watchdog:
    """Two threads that watch the main one."""

    def __init__(self, rank: int, world_size: int, hang_seconds: float, run_dir: Path) -> None:
        self._rank, self._world_size, self._hang_seconds = rank, world_size, hang_seconds
        self._events = run_dir / "events.jsonl"
        self._interval = min(5.0, hang_seconds / 20)
        self._stopped = threading.Event()
        self._heard: dict[int, tuple[Report, float]] = {}
        """The last new report of each other rank, and when it came."""
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _exchange(self) -> None:
        """Tell the others where we are and, when it has been the same place for long, ask where they are."""
        store: Any = None
        beat = 0
        while not self._stopped.wait(self._interval):
            with contextlib.suppress(RuntimeError):  # the store has gone with the process that kept it, or is not there
                if store is None:
                    store = _connect(2 * self._interval)
                    continue
                beat += 1
                own = dataclasses.asdict(own_report(beat))
                store.set(_key(self._rank), json.dumps(own))
                if own["silent_seconds"] > self._hang_seconds / 2:
                    self._ask(store)

    def _ask(self, store: Any) -> None:
        for rank in range(self._world_size):
            if rank != self._rank and store.check([_key(rank)]):
                report = Report.read(store.get(_key(rank)))
                if rank not in self._heard or self._heard[rank][0].beat != report.beat:
                    self._heard[rank] = (report, time.monotonic())

    def _watch(self) -> None:
        grace = min(10.0, self._hang_seconds / 4)
        while not self._stopped.wait(self._interval):
            # Python's threads do not run while one of them never lets go of the interpreter; this timer does.
            faulthandler.dump_traceback_later(self._hang_seconds + grace + _REPORT_SECONDS, exit=True)
            own = own_report()
            if own.silent_seconds < self._hang_seconds:
                continue
            others = self._others()
            behind = furthest_behind({self._rank: own, **others})
            # Who waits for others lets them speak first, since they can say where they hang.
            if self._rank in behind or own.silent_seconds > self._hang_seconds + grace:
                self._end(own, others, behind)

    def _others(self) -> dict[int, Report]:
        """Of the ranks that are heard of."""
        oldest = time.monotonic() - _MISSED_BEATS * self._interval
        return {rank: report for rank, (report, came) in dict(self._heard).items() if came > oldest}

    def _end(self, own: Report, others: dict[int, Report], behind: list[int]) -> None:
        faulthandler.dump_traceback_later(_REPORT_SECONDS, exit=True)  # whatever hangs below
        heard = {rank: report.place for rank, (report, _) in dict(self._heard).items()}
        lost = {rank: heard.get(rank) for rank in range(self._world_size) if rank not in {self._rank, *others}}
        message = describe(self._rank, own, others, lost)
        print(f"error: {message}; this process ends. Where its threads are:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        event = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": "hang", "rank": self._rank}
        event |= {"step": own.place.step, "phase": own.place.phase, "seconds": round(own.silent_seconds, 1)}
        event |= {"furthest_behind": behind, "not_heard_of": list(lost)}
        with contextlib.suppress(OSError), self._events.open("a") as file:
            file.write(json.dumps(event) + "\n")
        os._exit(EXIT_HANGS)


def own_report(beat: int = 0) -> Report:
    """Of this process."""
    return Report(_Here.place, time.monotonic() - _Here.since, _collective_of_main_thread(), beat)


def furthest_behind(reports: dict[int, Report]) -> list[int]:
    """The ranks that have come least far; of those at the same place, the ones that do not wait for others, if any."""
    least = min(report.place.number for report in reports.values())
    last = [rank for rank, report in sorted(reports.items()) if report.place.number == least]
    return [rank for rank in last if reports[rank].waits_in is None] or last


def describe(rank: int, own: Report, others: dict[int, Report], lost: dict[int, Place | None]) -> str:
    """What to say when `rank` has waited long enough. `others` are heard of; of the `lost` the last known place."""
    message = f"rank {rank} makes no progress, {own}"
    if lost:
        last = [f"rank {other} ({f'last at {place}' if place else 'never'})" for other, place in lost.items()]
        message += f"; not heard of: {_listed(last)}"
    if others:
        behind = furthest_behind({rank: own, **others})
        named = [f"rank {other}" + ("" if other == rank else f", {others[other]}") for other in behind]
        message += f"; furthest behind{' of the others' if lost else ''}: {_listed(named)}"
    return message


def _listed(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")


def _key(rank: int) -> str:
    return f"deberta_scale/place/{rank}"


def _connect(patience_seconds: float) -> Any:
    """A connection to the store of the process group, once that is formed: the group's own is busy while it waits."""
    if not torch.distributed.is_initialized():
        return None
    store: Any = torch.distributed.distributed_c10d._get_default_store()
    store = store.clone()
    store.set_timeout(timedelta(seconds=patience_seconds))
    return store


def _collective_of_main_thread() -> str | None:
    """The function of torch.distributed that the main thread is in, or DeepSpeed's wait for one begun before."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.endswith("distributed_c10d.py") or (name == "wait" and "deepspeed" in file):
            return name
        frame = frame.f_back
    return None
