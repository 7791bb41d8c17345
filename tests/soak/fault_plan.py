"""Which faults a soak has, drawn by its seed. Of fewer faults the same ones come first."""

import enum
import random
from dataclasses import dataclass

SAVE_EVERY_STEPS = 3
_MOST_RANKS = 4
_STEPS_TO_THE_END = 4


class Kind(enum.Enum):
    """What happens to the run; its value says it for people."""

    KILL_RANK = "a rank is killed"
    KILL_ALL = "all ranks are killed"
    STOP = "a stop is asked for"
    FREEZE = "a rank stands still"
    TRUNCATE_NEWEST = "the newest checkpoint is cut"
    TRUNCATE_UNFINISHED = "a checkpoint is cut while it is written"
    FILL_DISK = "the disk is full"
    REMOVE_MARKER = "the newest checkpoint loses its marker"


_LASTING = set(Kind) - {Kind.KILL_RANK, Kind.KILL_ALL, Kind.STOP}
"""Those in which the run goes on for some steps, until it has saved, or failed to."""


@dataclass(frozen=True)
class Fault:
    seed: int
    number: int
    """The first being 1."""
    world_size: int
    """Ranks of the start that it happens to."""
    kind: Kind
    step: int
    """It does not begin before the log holds this step."""

    def chance(self) -> random.Random:
        """For all that is left to chance: the rank, the file, the part of a second."""
        return random.Random(f"soak {self.seed}, fault {self.number}")


def plan(seed: int, num_faults: int) -> list[Fault]:
    """So many faults, at rising steps: of every eight each kind once, and never twice in turn as many ranks."""
    draw = random.Random(f"soak {seed}")
    faults: list[Fault] = []
    kinds: list[Kind] = []
    world_size, step = 0, 0
    for number in range(1, num_faults + 1):
        kinds = kinds or draw.sample(list(Kind), len(Kind))
        kind = kinds.pop()
        world_size = draw.choice([size for size in range(1, _MOST_RANKS + 1) if size != world_size])
        step += draw.randint(1, 2 * SAVE_EVERY_STEPS)
        faults.append(Fault(seed, number, world_size, kind, step))
        step += 3 * SAVE_EVERY_STEPS if kind in _LASTING else 0
    return faults


def last_step(faults: list[Fault]) -> int:
    """At which a run ends that has room for all of them."""
    return faults[-1].step + 3 * SAVE_EVERY_STEPS + _STEPS_TO_THE_END
