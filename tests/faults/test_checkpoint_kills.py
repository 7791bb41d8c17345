"""A rank that dies at any point of a save leaves a whole checkpoint behind, and the next start finds it."""

import signal
from pathlib import Path
from typing import Any

import pytest

from deberta_scale.train.distributed import EXIT_LOST
from tests.faulting import Outcome, Scenario, conduct
from tests.launching import read_log

POINTS: dict[str, tuple[dict[int, dict[str, Any]], str]] = {
    "after create": ({1: {"kill_after_create": "step-00000004"}}, "step-00000002"),
    "in the middle of a file": ({1: {"kill_mid_write": "step-00000004"}}, "step-00000002"),
    "before the manifest": ({0: {"kill_before_file": "step-00000004/manifest.json"}}, "step-00000002"),
    "before the rename": ({0: {"kill_before_rename": "step-00000004"}}, "step-00000002"),
    "before COMPLETE": ({0: {"kill_before_file": "step-00000004/COMPLETE"}}, "step-00000002"),
    "while pruning": ({0: {"kill_during_prune": "step-00000002"}}, "step-00000004"),
    "while another rank writes": (
        {0: {"hold_write": {"name": "step-00000004"}}, 1: {"kill_after_step": 5}},
        "step-00000002",
    ),
}
"""By where a rank dies: the fault, and the checkpoint to go on from."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, small_config: str) -> tuple[Path, dict[str, Outcome]]:
    """The directory of the runs; by name, the undisturbed run, each killed run, and each next start of one."""
    directory = tmp_path_factory.mktemp("kills")
    scenarios = {"undisturbed": Scenario(directory / "undisturbed")}
    for point, (faults, _) in POINTS.items():
        scenarios[point] = Scenario(directory / point, faults=faults)
        scenarios[f"{point}, again"] = Scenario(directory / point)
    found = conduct(directory, small_config, list(scenarios.values()))
    return directory, dict(zip(scenarios, found, strict=True))


@pytest.mark.parametrize("point", POINTS)
def test_a_rank_killed_at_any_point_of_a_save(outcomes: tuple[Path, dict[str, Outcome]], point: str) -> None:
    """R17, and a dead rank ends the others within seconds, whatever they are writing."""
    directory, by_name = outcomes
    faults, expected = POINTS[point]
    killed, again = by_name[point], by_name[f"{point}, again"]
    victim = max(rank for rank, names in faults.items() if any(name.startswith("kill") for name in names))
    assert killed.codes[victim] == -signal.SIGKILL
    assert killed.codes[1 - victim] == EXIT_LOST, "the other rank ends by itself"

    path = directory / point / "checkpoints" / expected
    assert f"resuming from {path}, the newest complete checkpoint; all digests agree" in again.output
    assert again.codes == [0, 0], again.output
    assert again.checkpoints == [expected, "step-00000006"], "the one in use, the newest, and no leftovers"
    losses = [[record["loss"] for record in read_log(directory / name)] for name in (point, "undisturbed")]
    assert losses[0] == losses[1]
