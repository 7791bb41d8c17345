"""A soak: one run directory, a real training in it, and one fault after the other, each followed by the next start.

Usage: conductor.py CONFIG DIRECTORY SEED FAULTS, started by `python -m tests.soak`, which gives DIRECTORY/disk a small
file system of its own where it may. Prints a line for each fault and a summary; the exit code is 1 when the run did
what it must not do.
"""

import contextlib
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deberta_scale.train.checkpoint import complete_checkpoints, step_of
from tests.soak.disks import disk_at
from tests.soak.fault_plan import Fault, last_step, plan
from tests.soak.injecting import Injected, inject
from tests.soak.running import Ranks, prepare_to_fork
from tests.soak.seeing import Violation, events_of, intact_checkpoints, starts_of
from tests.soak.verdict import TOLERANCE, largest_difference, violations, wrong_samples

_CALM_WORLD_SIZE = 1
"""Ranks of the undisturbed run, and of the start after the last fault."""


class Soak:
    """The two runs, and what may be expected of the disturbed one."""

    def __init__(self, config: Path, directory: Path, faults: list[Fault]) -> None:
        self._config, self._directory, self._faults = config, directory, faults
        self._disk = disk_at(directory / "disk")
        self.steps = last_step(faults)
        self.undisturbed, self.disturbed = directory / "undisturbed", directory / "disk" / "run"
        self.at, self.num_begun = "the undisturbed run", 0
        """What is to blame for a violation, and how many faults there were until then."""

    def conduct(self) -> None:
        """Both runs from the first step to the last. Raises Violation."""
        prepare_to_fork()
        with self._started(self.undisturbed, _CALM_WORLD_SIZE, "undisturbed") as ranks:
            ranks.expect_codes(0)
        before = ""
        for fault in self._faults:
            with self._started(self.disturbed, fault.world_size, f"fault-{fault.number:03d}") as ranks:
                said = self._expect_resume(ranks)
                if before:
                    print(f"{before}; then, {fault.world_size} rank(s): {said}", flush=True)
                self.at, self.num_begun = f"fault {fault.number} ({fault.kind.value})", fault.number
                before = self._suffer(fault, ranks)
        with self._started(self.disturbed, _CALM_WORLD_SIZE, "last") as ranks:
            print(f"{before}; then, {_CALM_WORLD_SIZE} rank(s): {self._expect_resume(ranks)}", flush=True)
            ranks.expect_codes(0)
        self.at = "the whole"

    @contextlib.contextmanager
    def _started(self, run_dir: Path, world_size: int, name: str) -> Iterator[Ranks]:
        outputs = self._directory / "outputs" / name
        ranks = Ranks(self._config, run_dir, world_size, self.steps, outputs)
        try:
            yield ranks
        finally:
            ranks.close()

    def _expect_resume(self, ranks: Ranks) -> str:
        """What the start says of where it begins. Raises Violation when that is not the newest intact checkpoint, or
        when it does not tell of damaged ones."""
        intact = intact_checkpoints(self.disturbed)
        newest = step_of(intact[0]) if intact else 0
        damaged = [path.name for path in complete_checkpoints(self.disturbed) if step_of(path) > newest]
        event = ranks.wait_for_start()
        expected = {"event": "resume" if intact else "start", "step": newest, "ranks": ranks.world_size}
        if not expected.items() <= event.items():
            raise Violation(f"the next start should have told {expected}, and told {event}")
        told = [note for note in event["notes"] if note.startswith(("passed over", "starting", "resuming"))]
        said = "; ".join(told).replace(f"{self.disturbed}/", "")
        if silent := [name for name in damaged if f"passed over {name}" not in said]:
            raise Violation(f"the next start should have passed over {silent} aloud, and told {event}")
        return said

    def _suffer(self, fault: Fault, ranks: Ranks) -> str:
        """The fault, which is over when this returns what it was. Raises Violation when a checkpoint that was told of
        is lost, but for those that the fault damaged."""
        injected = inject(fault, ranks, self._disk)
        intact = {step_of(path) for path in intact_checkpoints(self.disturbed)}
        told = self._told_checkpoints() - {step_of(path) for path in injected.damaged}
        if max(told, default=0) > max(intact, default=0):
            raise Violation(
                f"checkpoints of steps {sorted(told)} were told of, and those of {sorted(intact)} are there"
            )
        return _line(fault, injected)

    def _told_checkpoints(self) -> set[int]:
        """Steps at which this start began, and after which it told that it had saved."""
        begin = starts_of(self.disturbed)[-1]
        events = events_of(self.disturbed)
        saved: list[dict[str, Any]] = [e for e in events[events.index(begin) :] if e["event"] == "saved"]
        return {begin["step"], *(event["step"] for event in saved)}

    def judge(self) -> None:
        """Raises Violation when the finished run is not the undisturbed one."""
        if found := violations(self.disturbed, self.undisturbed, self.steps):
            raise Violation("; ".join(found))

    def summary(self) -> str:
        runs = self.disturbed, self.undisturbed
        return (
            f"{len(self._faults)} faults survived in {self.steps} steps: {len(wrong_samples(*runs))} steps with wrong"
            f" samples; losses differ from the undisturbed run's by {largest_difference(*runs, 'train'):.1e} of them,"
            f" held-out ones by {largest_difference(*runs, 'evaluation'):.1e} ({TOLERANCE:.0e} allowed)"
        )


def _line(fault: Fault, injected: Injected) -> str:
    return (
        f"{fault.number:>3}  {fault.world_size} rank(s)  step {fault.step:>3}  {fault.kind.value}: {injected.details}"
    )


def main() -> int:
    config, directory, seed, num_faults = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    soak = Soak(config, directory, plan(seed, num_faults))
    start = time.monotonic()
    try:
        soak.conduct()
        soak.judge()
    except Exception as error:
        if not isinstance(error, Violation):
            traceback.print_exc()
        again = f"make soak SOAK_SEED={seed} SOAK_FAULTS={max(1, soak.num_begun)}"
        print(f"error: seed {seed}, {soak.at}: {error}\nto have it again: {again}", file=sys.stderr, flush=True)
        return 1
    finally:
        if soak.disturbed.exists():  # on a disk that goes with this process
            shutil.copytree(soak.disturbed, directory / "disturbed")
    print(f"{soak.summary()}; {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
