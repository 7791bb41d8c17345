"""Whether a run that much happened to is the one that nothing happened to."""

import math
from pathlib import Path
from typing import Any

from deberta_scale.train.checkpoint import step_of
from tests.soak.seeing import events_of, is_intact, records

TOLERANCE = 1e-5
"""Of a loss, relative. Samples and arithmetic are the same, in fp32; but another number of ranks makes its sums in
another order, which changes the last digits of gradients, and every step carries these on."""
_UNWANTED = {"hang", "went back", "step skipped", "step passed over", "loss jumped"}
"""Events that tell of trouble with the training itself, of which there was none."""


def violations(disturbed: Path, undisturbed: Path, steps: int) -> list[str]:
    """What is not in the finished run directory as it must be, in words."""
    return [
        *of_samples(disturbed, undisturbed, steps),
        *of_losses(disturbed, undisturbed),
        *of_files(disturbed, undisturbed, steps),
        *of_events(disturbed, steps),
    ]


def of_kind(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in records(run_dir / "log.jsonl") if record["kind"] == kind]


def wrong_samples(disturbed: Path, undisturbed: Path) -> list[int]:
    """Steps whose samples are not those of the undisturbed run, of the steps in both logs."""
    expected = {record["step"]: record["sample_digest"] for record in of_kind(undisturbed, "train")}
    return [r["step"] for r in of_kind(disturbed, "train") if r["sample_digest"] != expected.get(r["step"])]


def of_samples(disturbed: Path, undisturbed: Path, steps: int) -> list[str]:
    found = []
    logged = [record["step"] for record in of_kind(disturbed, "train")]
    if logged != list(range(1, steps + 1)):
        missing = sorted(set(range(1, steps + 1)) - set(logged))
        repeated = sorted({step for step in logged if logged.count(step) > 1})
        found.append(f"the log does not hold each step once and in turn: missing {missing}, repeated {repeated}")
    if wrong := wrong_samples(disturbed, undisturbed):
        found.append(f"other samples than in the undisturbed run at steps {wrong}")
    return found


def largest_difference(disturbed: Path, undisturbed: Path, kind: str = "train") -> float:
    """Of the losses at the same step, relative; infinite when only one of the runs has them, or one is not finite."""
    losses = [{record["step"]: record["loss"] for record in of_kind(path, kind)} for path in (disturbed, undisturbed)]
    if losses[0].keys() != losses[1].keys():
        return math.inf
    differences = [abs(losses[0][step] - loss) / abs(loss) for step, loss in losses[1].items()]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf


def of_losses(disturbed: Path, undisturbed: Path) -> list[str]:
    found = []
    for kind in ("train", "evaluation"):
        difference = largest_difference(disturbed, undisturbed, kind)
        if difference > TOLERANCE:
            found.append(f"{kind} losses differ from the undisturbed run's by {difference:.2g}, more than {TOLERANCE}")
    return found


def of_files(disturbed: Path, undisturbed: Path, steps: int) -> list[str]:
    found = []
    names = [{path.name for path in directory.iterdir()} for directory in (disturbed, undisturbed)]
    if names[0] != names[1]:
        found.append(f"files in only one of the run directories: {sorted(names[0] ^ names[1])}")
    stray = [path for path in disturbed.rglob("*") if path.suffix in (".partial", ".tmp")]
    if stray:
        found.append(f"left behind: {', '.join(str(path.relative_to(disturbed)) for path in stray)}")
    kept = sorted((disturbed / "checkpoints").iterdir())
    if broken := [path.name for path in kept if not is_intact(path)]:
        found.append(f"checkpoints that are not whole: {broken}")
    elif not kept or step_of(kept[-1]) != steps:
        found.append(f"the last checkpoint is not that of step {steps}, but one of {[path.name for path in kept]}")
    return found


def of_events(disturbed: Path, steps: int) -> list[str]:
    found = []
    events = events_of(disturbed)
    if not events or events[-1]["event"] != "finished" or events[-1]["step"] != steps:
        found.append(f"the last event is not the end at step {steps}, but {events[-1] if events else 'none'}")
    if unwanted := [event for event in events if event["event"] in _UNWANTED]:
        found.append(f"events of trouble that there was not: {unwanted}")
    return found
