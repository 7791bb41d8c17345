"""The job script for fine-tuning, with stand-ins for SLURM's commands: no root, no cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import ROOT

STAND_INS = {
    "srun": 'echo "$@" > words; exit "$CODE"',
    "scontrol": 'echo "$@" >> scontrol.log',
    "squeue": 'echo "$STATE"',
}


def run_job(place: Path, *words: str, code: int, state: str = "RUNNING", **variables: str) -> tuple[int, str, str]:
    """Exit code of the job, the words that srun was given, what scontrol was told."""
    for name, body in STAND_INS.items():
        (place / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (place / name).chmod(0o755)
    (place / "launch").symlink_to(ROOT / "launch")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment = kept | {
        "PATH": f"{place}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_SUBMIT_DIR": str(place),
        "SLURM_JOB_ID": "7",
        "CODE": str(code),
        "STATE": state,
        **variables,
    }
    command = ["bash", ROOT / "launch" / "slurm" / "finetune.sbatch", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    log = place / "scontrol.log"
    told = log.read_text() if log.exists() else done.stderr
    return done.returncode, (place / "words").read_text(), told


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (75, True), (76, True), (137, True)])
def test_what_need_not_recur_is_put_back_into_the_queue(tmp_path: Path, code: int, again: bool) -> None:
    returned, words, told = run_job(tmp_path, "config.yaml", "seed=2", code=code)
    assert returned == code and ("requeue 7" in told) == again
    assert words.endswith(f"{sys.executable} -u launch/finetune.py config.yaml seed=2\n")


def test_a_cancelled_job_stays_away(tmp_path: Path) -> None:
    assert run_job(tmp_path, "config.yaml", code=143, state="CANCELLED")[2] == ""


def test_restarts_have_an_end(tmp_path: Path) -> None:
    _, _, told = run_job(tmp_path, "config.yaml", code=75, SLURM_RESTART_COUNT="20")
    assert "not put back into the queue after 20 restarts" in told and "requeue 7" not in told


def test_an_element_of_an_array_makes_its_part_of_the_sweep(tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "5"}
    _, words, _ = run_job(tmp_path, "config.yaml", "--sweep", "seed=1,2", code=0, **array)
    assert words.endswith("launch/finetune.py config.yaml --sweep seed=1,2 --part 2/5\n")
