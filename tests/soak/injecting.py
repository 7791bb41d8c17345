"""What the faults of a soak do, each from outside, at a step seen in the log, until no rank of that start is left."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deberta_scale.train.checkpoint import checkpoint_dir
from tests.soak.disks import Disk
from tests.soak.fault_plan import Fault, Kind
from tests.soak.running import Ranks
from tests.soak.seeing import Violation, events_of, intact_checkpoints, is_intact, logged_step, unfinished_files

_STOPPED, _FAILED, _KILLED = 75, 1, -signal.SIGKILL


@dataclass(frozen=True)
class Injected:
    details: str
    """What was done, for people."""
    damaged: list[Path] = field(default_factory=list)
    """Checkpoints from which no run can go on any more."""


def inject(fault: Fault, ranks: Ranks, disk: Disk) -> Injected:
    """Let it happen to these ranks, and see all of them end. Raises Violation when they do not take it as they must."""
    ranks.wait_for_step(fault.step)
    return _INJECTIONS[fault.kind](ranks, fault.chance(), disk)


def kill_rank(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    victim = chance.randrange(ranks.world_size)
    during = wait_for_some_moment(ranks, chance)
    ranks.signal(signal.SIGKILL, [victim])
    codes = ranks.wait_for_end()
    if codes[victim] != _KILLED or set(codes) & {0, _STOPPED}:
        raise Violation(f"rank {victim} was killed, and the ranks ended with {codes}")
    return Injected(f"rank {victim}, {during}")


def kill_all(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    during = wait_for_some_moment(ranks, chance)
    ranks.kill_all()
    ranks.wait_for_end()
    return Injected(during)


def stop(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    how = chance.choice(["SIGTERM", "SIGUSR1", "SIGINT", "stop file"])
    asked = chance.choice([[chance.randrange(ranks.world_size)], list(range(ranks.world_size))])
    during = wait_for_some_moment(ranks, chance)
    if how == "stop file":
        (ranks.run_dir / "STOP").touch()
        details = f"{how}, {during}"
    else:
        ranks.signal(signal.Signals[how], asked)
        details = f"{how} to rank {', '.join(map(str, asked))}, {during}"
    ranks.expect_codes(_STOPPED)
    last = events_of(ranks.run_dir)[-1]
    if last["event"] != "stopped" or how not in last["reason"]:
        raise Violation(f"{how} asked for a stop, and the last event is {last}")
    if last["step"] != logged_step(ranks.run_dir) or not is_intact(checkpoint_dir(ranks.run_dir, last["step"])):
        raise Violation(f"the run stopped at step {last['step']}, but did not save the last step of its log")
    if (ranks.run_dir / "STOP").exists():
        raise Violation("the run stopped, and its stop file is still there")
    return Injected(details)


def freeze(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    victim, seconds = chance.randrange(ranks.world_size), chance.uniform(0.2, 2.0)
    during = wait_for_some_moment(ranks, chance)
    ranks.signal(signal.SIGSTOP, [victim])
    time.sleep(seconds)  # which is the fault
    ranks.signal(signal.SIGCONT, [victim])
    ranks.wait_for_step(logged_step(ranks.run_dir) + 3)
    kill_all(ranks, chance, disk)
    return Injected(f"rank {victim} for {seconds:.1f} s, {during}; then all killed")


def truncate_newest(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    newest = kill_beside_two_checkpoints(ranks)
    done = cut(chance.choice(sorted(path for path in newest.rglob("*") if path.is_file())), chance)
    return Injected(f"{done}; all killed", damaged(newest))


def remove_marker(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    newest = kill_beside_two_checkpoints(ranks)
    (newest / "COMPLETE").unlink()
    return Injected(f"{newest.name}; all killed", damaged(newest))


def truncate_unfinished(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    """Then all ranks are killed, at once or when they are through with that save."""
    waits = chance.random() < 0.5
    wait_for_two_checkpoints(ranks)
    done: list[str] = []

    def cut_one() -> bool:
        with contextlib.suppress(FileNotFoundError, IndexError):  # published meanwhile; nothing written yet
            done.append(cut(chance.choice(unfinished_files(ranks.run_dir)), chance))
        return bool(done)

    ranks.wait_until(cut_one, "checkpoint that is being written")
    if waits:
        ranks.wait_until(lambda: not unfinished_files(ranks.run_dir), "end of that save")
    ranks.kill_all()
    ranks.wait_for_end()
    name, _, _ = done[0].partition(".partial/")
    when = "when that save had ended" if waits else "at once"
    return Injected(f"{done[0]}; all killed {when}", damaged(ranks.run_dir / "checkpoints" / name))


def fill_disk(ranks: Ranks, chance: random.Random, disk: Disk) -> Injected:
    """For good, which ends the run at the second save that fails, or until it has told of the first one."""
    for_good = chance.random() < 0.5
    during = wait_for_some_moment(ranks, chance)
    disk.fill(ranks)
    told, ended = "save failed: ", "error: 2 saves in a row failed"
    ranks.wait_until(lambda: (ended if for_good else told) in ranks.output, "failed save told")
    if not for_good:
        disk.empty(ranks)
        after = len(ranks.output)
        ranks.wait_until(lambda: "\nsaved " in ranks.output[after:] or ended in ranks.output, "save with room again")
    if ended in ranks.output:  # also when the next save came before the disk was empty
        ranks.expect_codes(_FAILED)
        if for_good:
            disk.empty(ranks)
        return Injected(f"until the run ended, {during}")
    if not any(event["event"] == "save failed" for event in events_of(ranks.run_dir)):
        raise Violation("a save failed, and no event tells it")
    kill_all(ranks, chance, disk)
    return Injected(f"for a while, {during}; then all killed")


def wait_for_some_moment(ranks: Ranks, chance: random.Random) -> str:
    """A part of a second after the step, or after the beginning of the next save; returns which."""
    in_save, seconds = chance.random() < 0.5, chance.uniform(0.0, 0.2)
    if in_save:
        ranks.wait_until(lambda: bool(unfinished_files(ranks.run_dir)), "save")
    time.sleep(seconds)  # what happens meanwhile is left to chance
    return "in a save" if in_save else "in a step"


def wait_for_two_checkpoints(ranks: Ranks) -> None:
    """So that the run can go on from one when the other is damaged."""
    ranks.wait_until(lambda: len(intact_checkpoints(ranks.run_dir)) > 1, "second intact checkpoint")


def kill_beside_two_checkpoints(ranks: Ranks) -> Path:
    """All ranks; returns the newest checkpoint."""
    wait_for_two_checkpoints(ranks)
    ranks.kill_all()
    ranks.wait_for_end()
    return intact_checkpoints(ranks.run_dir)[0]


def damaged(checkpoint: Path) -> list[Path]:
    """That checkpoint, if what was done to it damaged it: a marker that lost its line feed says what it said."""
    return [] if is_intact(checkpoint) else [checkpoint]


def cut(path: Path, chance: random.Random) -> str:
    """Keep a part of a file, from the beginning. Returns what was done, below `checkpoints`."""
    size = path.stat().st_size
    kept = int(size * chance.random())
    os.truncate(path, kept)
    below = next(parent for parent in path.parents if parent.name == "checkpoints")
    return f"{path.relative_to(below)} to {kept} of {size} bytes"


_INJECTIONS: dict[Kind, Callable[[Ranks, random.Random, Disk], Injected]] = {
    Kind.KILL_RANK: kill_rank,
    Kind.KILL_ALL: kill_all,
    Kind.STOP: stop,
    Kind.FREEZE: freeze,
    Kind.TRUNCATE_NEWEST: truncate_newest,
    Kind.TRUNCATE_UNFINISHED: truncate_unfinished,
    Kind.FILL_DISK: fill_disk,
    Kind.REMOVE_MARKER: remove_marker,
}
