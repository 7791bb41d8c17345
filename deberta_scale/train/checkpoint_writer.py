"""Saving while training goes on: copy the state, write it in a thread, publish when all ranks have written.

A save has two phases, and each ends at a step boundary, when the ranks agree that all have done their part:
writing     every rank: its files into `step-N.partial/`, synced and digested
publishing  rank 0: manifest, rename, COMPLETE, then what is superseded is removed
"""

import concurrent.futures
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from deberta_scale.durable import write_described
from deberta_scale.train import distributed, watchdog
from deberta_scale.train.checkpoint import (
    CheckpointError,
    checkpoint_dir,
    prune,
    publish,
    random_state,
    sweep_unfinished,
)
from deberta_scale.train.distributed import AgreedError
from deberta_scale.train.engine_state import FILE_NAME, EngineState, copy_state
from deberta_scale.train.host_memory import available_memory
from deberta_scale.train.metrics import RunLog
from deberta_scale.train.state import TrainState

MAX_FAILURES_IN_A_ROW = 2
_MEMORY_SHARE = 0.8
"""Of the memory that is available, what copies may take."""

Result = TypeVar("Result")


class SaveError(AgreedError):
    """Saving does not work; the older checkpoints are intact."""


@dataclass(frozen=True)
class KeepPolicy:
    """Which checkpoints stay when a newer one is published."""

    last: int
    every_steps: int | None = None
    best: Path | None = None
    in_use: Path | None = None
    """The one this run went on from; see `Saver.go_on_from`."""


@dataclass(frozen=True)
class _Share:
    """What one rank tells of its part, once written."""

    files: dict[str, dict[str, Any]]
    blocked_seconds: float
    at_once: str | None
    """Why its training waited for the write, if it did."""


@dataclass
class _Save:
    """A save in progress, as one rank sees it."""

    step: int
    started: float
    """By `time.perf_counter`."""
    work: Future[Any]
    """Of the phase: describes this rank's files, then, on rank 0, gives the seconds until it was published."""
    blocked_seconds: float
    """Of training, so far."""
    at_once: str | None
    publishing: bool = False
    num_bytes: int = 0
    notes: list[str] = field(default_factory=list)


class Saver:
    """The saves of one run, one at a time, the same on all ranks. `begin`, `advance`, `wait` and `finish` are called by
    all ranks together."""

    def __init__(
        self,
        run_dir: Path,
        facts: dict[str, Any],
        keep: KeepPolicy,
        log: RunLog,
        ranks_on_host: int = 1,
    ) -> None:
        """`facts` are written into each manifest beside step, world size and file digests. `ranks_on_host` share the
        memory that copies take."""
        self._run_dir, self._facts, self._keep, self._log = run_dir, facts, keep, log
        self._ranks_on_host = ranks_on_host
        self._rank, self._world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._newest = keep.in_use
        self._published_step: int | None = None
        self._current: _Save | None = None
        self._failures = 0
        self.slowest_seconds = 0.0
        """Of the saves so far, from beginning to publication; 0 on other ranks than 0."""

    def go_on_from(self, checkpoint: Path) -> None:
        """The run stands where this checkpoint was made, and comes by later steps once more. Between saves."""
        self._keep, self._newest = replace(self._keep, in_use=checkpoint), checkpoint
        self._published_step = None

    def keep_best(self, checkpoint: Path) -> None:
        """Keep this one, which may still be written, until another is the best."""
        self._keep = replace(self._keep, best=checkpoint)

    def has(self, step: int) -> bool:
        """Whether this saver has published the state after `step`, or is writing it."""
        return step in (self._published_step, self._current and self._current.step)

    def begin(self, engine: Any, state: TrainState) -> None:
        """Copy what `engine` and this process hold, and have it written. Waits for a save in progress; waits for the
        write as well when the state is not copied, since memory has no room for it or it lies on disk.

        Raises SaveError on all ranks when the save before is the second in a row to fail.
        """
        start = time.perf_counter()
        self.wait()
        work, at_once = self._start_writing(engine, state)
        blocked = time.perf_counter() - start
        self._current = _Save(state.step, start, work, blocked, at_once)
        self._log.event("save began", step=state.step, blocked_seconds=round(blocked, 3), waited_for_write=at_once)

    def _start_writing(self, engine: Any, state: TrainState) -> tuple[Future[Any], str | None]:
        available = min(distributed.gather_objects(available_memory()))  # before a rank has begun to copy
        room = _MEMORY_SHARE * available / self._ranks_on_host
        try:
            copied = copy_state(engine, most_bytes=room)
        except Exception as error:  # most likely no memory; a failed save is told to all ranks, whatever the cause
            return _failed(error), None
        aside = _aside(self._run_dir, state.step)
        work = _in_background(partial(_write_share, aside, self._rank, copied, random_state(), state))
        if copied.is_copy:
            return work, None
        too_large = f"a copy of {copied.num_bytes:,} bytes a rank does not fit into memory ({room:,.0f} to spare)"
        reason = too_large if copied.num_bytes > room else "a part of the state lies on disk"
        self._log.say(f"training waits while the checkpoint of step {state.step} is written: {reason}")
        concurrent.futures.wait([work])
        return work, reason

    def progress(self) -> list[bool]:
        """Whether this rank has done its part of the phase, and whether it failed at it: to be summed over ranks."""
        if self._current is None or not self._current.work.done():
            return [False, False]
        failed = self._current.work.exception() is not None
        return [not failed, failed]

    def advance(self, num_done: float, num_failed: float) -> None:
        """Go on to the next phase when the sums of `progress` over all ranks say that all are through this one.

        Raises SaveError on all ranks when a second save in a row has failed.
        """
        if self._current is None or num_done + num_failed < self._world_size:
            return
        if num_failed:
            self._fail(self._current)
        elif self._current.publishing:
            self._succeed(self._current)
        else:
            self._start_publishing(self._current)

    def wait(self) -> None:
        """Return when no save is in progress: the last one is published, or its failure was told.

        Raises SaveError as `advance`.
        """
        while self._current is not None:
            start = time.perf_counter()
            phase = "publishing" if self._current.publishing else "writing"
            watchdog.enter(f"save of step {self._current.step}: {phase}")
            concurrent.futures.wait([self._current.work])
            sums = distributed.sum_over_ranks(self.progress())
            self._current.blocked_seconds += time.perf_counter() - start
            self.advance(*sums)

    def finish(self) -> None:
        """As `wait`, for the last save of this process. Raises SaveError on all ranks also when that one failed."""
        self.wait()
        if self._failures:
            raise SaveError(f"the run ends without its last checkpoint; {self._where_to_go_on()}")

    def _start_publishing(self, save: _Save) -> None:
        share = _Share(save.work.result(), save.blocked_seconds, save.at_once)
        shares = distributed.gather_objects(share)
        save.publishing = True
        save.blocked_seconds = max(share.blocked_seconds for share in shares)
        save.at_once = next((share.at_once for share in shares if share.at_once is not None), None)
        save.work = Future()
        if self._rank == 0:
            files = {name: entry for share in shares for name, entry in share.files.items()}
            save.num_bytes = sum(entry["bytes"] for entry in files.values())
            facts = {"step": save.step, "world_size": self._world_size, **self._facts, "files": files}
            save.work = _in_background(partial(self._publish, save, facts))
        else:
            save.work.set_result(None)

    def _publish(self, save: _Save, manifest: dict[str, Any]) -> float:
        """In the thread of rank 0. Returns the seconds since the save began."""
        final = checkpoint_dir(self._run_dir, save.step)
        publish(_aside(self._run_dir, save.step), final, manifest)
        seconds = time.perf_counter() - save.started
        keep = self._keep
        try:
            also = [path for path in (keep.best, keep.in_use) if path is not None]
            prune(self._run_dir, final, keep.last, keep.every_steps, also, save.notes.append)
        except OSError as error:  # no failure of the save, which is published
            save.notes.append(f"could not look for superseded checkpoints: {error}; the next save tries again")
        return seconds

    def _succeed(self, save: _Save) -> None:
        self._newest, self._published_step = checkpoint_dir(self._run_dir, save.step), save.step
        self._current, self._failures = None, 0
        if self._rank != 0:
            return
        blocked = save.blocked_seconds
        total = max(save.work.result(), blocked)  # training also waits for superseded checkpoints to go, and for ranks
        self.slowest_seconds = max(self.slowest_seconds, total)
        seconds = {"blocked_seconds": round(blocked, 3), "total_seconds": round(total, 3)}
        facts = {"path": self._newest.name, "bytes": save.num_bytes, "waited_for_write": save.at_once}
        self._log.event("saved", step=save.step, **facts, **seconds)
        self._log.scalars("save", save.step, seconds)
        because = "" if save.at_once is None else f": {save.at_once}"
        self._log.say(f"saved {self._newest} in {total:.1f} s, {blocked:.1f} s of them without training{because}")
        self._tell_complaints(save.notes)

    def _fail(self, save: _Save) -> None:
        if self._rank == 0:  # before the ranks talk, after which one may begin to write again
            sweep_unfinished(self._run_dir, save.notes.append)
        error = save.work.exception()
        told = None if error is None else f"rank {self._rank}: {_words(error)}"
        where = _aside(self._run_dir, save.step)
        reasons = "; ".join(message for message in distributed.gather_objects(told) if message is not None)
        self._current = None
        self._failures += 1
        self._log.event("save failed", step=save.step, error=reasons)
        message = f"step {save.step} could not be written to {where}: {reasons}; {self._where_to_go_on()}"
        self._log.say(f"save failed: {message}; two failures in a row end the run")
        self._tell_complaints(save.notes)
        if self._failures == MAX_FAILURES_IN_A_ROW:
            raise SaveError(f"{MAX_FAILURES_IN_A_ROW} saves in a row failed, so the run ends. {message}")

    def _tell_complaints(self, complaints: list[str]) -> None:
        for complaint in complaints:
            self._log.event("not removed", message=complaint)
            self._log.say(complaint)

    def _where_to_go_on(self) -> str:
        return "there is no checkpoint yet" if self._newest is None else f"the newest checkpoint is {self._newest}"


def _aside(run_dir: Path, step: int) -> Path:
    final = checkpoint_dir(run_dir, step)
    return final.with_name(final.name + ".partial")


def _write_share(
    aside: Path, rank: int, engine_state: EngineState, random: dict[str, torch.Tensor], state: TrainState
) -> dict[str, dict[str, Any]]:
    """Write this rank's files into `aside`, forced to disk, and describe what was meant for them. Runs beside
    training."""
    engine_path, random_path = aside / "engine" / FILE_NAME.format(rank=rank), aside / "random" / f"rank-{rank:05d}.pt"
    aside.mkdir(exist_ok=True)  # not its parents: a run directory that has vanished must not come back empty
    for path in (engine_path, random_path):
        path.parent.mkdir(exist_ok=True)
    saved_random = io.BytesIO()
    torch.save(random, saved_random)
    files = {
        engine_path: engine_state.write(engine_path),
        random_path: write_described(random_path, [saved_random.getbuffer()]),
    }
    if rank == 0:
        files[aside / "state.json"] = state.write(aside / "state.json")
    return {str(path.relative_to(aside)): facts for path, facts in files.items()}


def _in_background(action: Callable[[], Result]) -> Future[Result]:
    """Run `action` in a thread that never keeps a process alive: when another rank has died, this one must end."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, (OSError, CheckpointError)) else f"{type(error).__name__}: {error}"
