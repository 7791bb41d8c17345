"""One start of a run: its ranks, forked from here, and waiting for what they do."""

import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from deberta_scale.train.fragment_digest import digest_of_values
from tests.faults.fault_worker import run_rank
from tests.launching import free_port
from tests.soak.seeing import Violation, logged_step, starts_of

SEQUENCES = 12
"""A step, whatever the number of ranks."""
LIMIT_SECONDS = 180.0
"""For whatever is waited for."""
_LOOK_EVERY_SECONDS = 0.01


def prepare_to_fork() -> None:
    """Spare each rank what is the same in all: numba's own start, and looking for garbage among what is imported."""
    digest_of_values(torch.zeros(1), 0)
    gc.freeze()


class Ranks:
    """The processes of one start."""

    def __init__(self, config: Path, run_dir: Path, world_size: int, steps: int, outputs: Path) -> None:
        """Start them; what rank i prints goes into `outputs/rank-i.txt`."""
        self.run_dir, self.world_size = run_dir, world_size
        self._output = outputs / "rank-0.txt"
        self._starts_before = len(starts_of(run_dir))
        options = [f"run_dir={run_dir}", f"train.steps={steps}", f"batch.micro_sequences={SEQUENCES // world_size}"]
        start = {"config": str(config), "options": options, "port": free_port(), "world_size": world_size}
        outputs.mkdir(parents=True)
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}
        for rank in range(world_size):
            child = os.fork()
            if child == 0:
                run_rank(rank, start, outputs / f"rank-{rank}.txt")
            self.pids.append(child)

    @property
    def output(self) -> str:
        """Of rank 0 so far."""
        return self._output.read_text() if self._output.exists() else ""

    def signal(self, number: int, ranks: Iterable[int]) -> None:
        """Send it to those of the ranks that have not ended."""
        for rank in ranks:
            if not self._has_ended(rank):
                os.kill(self.pids[rank], number)

    def kill_all(self) -> None:
        self.signal(signal.SIGKILL, range(self.world_size))

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Raises Violation when it does not come true before a rank ends, or before the limit."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            if any(self._has_ended(rank) for rank in range(self.world_size)):
                self.wait_for_end()
                if condition():  # another rank, which ended last, has said it
                    return
                raise Violation(
                    f"waiting for {what}, ranks ended with {self.codes}; rank 0 said:\n{self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise Violation(f"no {what} after {LIMIT_SECONDS:.0f} s; rank 0 said:\n{self._last_words()}")
            time.sleep(_LOOK_EVERY_SECONDS)

    def wait_for_start(self) -> dict[str, Any]:
        """The event with which this start tells where it begins."""
        self.wait_until(lambda: len(starts_of(self.run_dir)) > self._starts_before, "start or resume")
        return starts_of(self.run_dir)[-1]

    def wait_for_step(self, step: int) -> None:
        """Until the log holds it; once the start was told, it holds none that are to be made again."""
        self.wait_until(lambda: logged_step(self.run_dir) >= step, f"step {step} in the log")

    def wait_for_end(self) -> list[int]:
        """Exit codes by rank. Raises Violation when one does not end."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not all([self._has_ended(rank) for rank in range(self.world_size)]):
            if time.monotonic() > deadline:
                raise Violation(f"ranks do not end, only {self.codes} did; rank 0 said:\n{self._last_words()}")
            time.sleep(_LOOK_EVERY_SECONDS)
        return [self.codes[rank] for rank in range(self.world_size)]

    def expect_codes(self, *allowed: int) -> None:
        """Wait for the end. Raises Violation when a rank ended with another code."""
        codes = self.wait_for_end()
        if not set(codes) <= set(allowed):
            raise Violation(f"ranks ended with {codes}, not with {allowed}; rank 0 said:\n{self._last_words()}")

    def close(self) -> None:
        """Nothing of this start goes on."""
        with contextlib.suppress(ProcessLookupError):
            self.kill_all()
        self.wait_for_end()

    def _has_ended(self, rank: int) -> bool:
        if rank not in self.codes:
            pid, status = os.waitpid(self.pids[rank], os.WNOHANG)
            if pid:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
        return rank in self.codes

    def _last_words(self) -> str:
        return self.output[-3000:]
