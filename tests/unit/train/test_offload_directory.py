"""The directory of an optimizer on disk: one run's own, emptied of what is left there, and large enough."""

import subprocess
import sys
from pathlib import Path

import pytest

from deberta_scale.config import ConfigError
from deberta_scale.train import offload_directory

CLAIM = """
import sys
from pathlib import Path
from deberta_scale.train import offload_directory
offload_directory.claim(Path(sys.argv[1]), 0, 1000, 1)
print("claimed", flush=True)
sys.stdin.read()
"""


def test_it_is_made_and_what_a_run_that_ended_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "fast" / "zero_stage_3" / "optimizer"
    for rank in (0, 1):
        (left / f"rank{rank}").mkdir(parents=True)
        (left / f"rank{rank}" / "0_5.tensor.swp").write_bytes(b"left")
    offload_directory.claim(tmp_path / "fast", 0, 1000, 1)
    assert not (left / "rank0").exists()
    assert (left / "rank1" / "0_5.tensor.swp").exists(), "which is another rank's"
    (left / "rank0").mkdir()
    offload_directory.release_all()
    assert not (left / "rank0").exists(), "nothing stays of a run that ends"


def test_two_runs_do_not_share_it(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdout.readline() == "claimed\n"
    with pytest.raises(ConfigError, match=f"is used by another run \\(process {other.pid}\\)"):
        offload_directory.claim(tmp_path, 0, 1000, 1)
    offload_directory.claim(tmp_path, 1, 1000, 1)  # another rank's part of it
    other.communicate("")
    offload_directory.claim(tmp_path, 0, 1000, 1)


def test_a_disk_that_is_too_small_is_told_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"16000000.0 GB are needed.*2 rank.*larger disk"):
        offload_directory.claim(tmp_path, 0, 500_000_000_000_000, 2)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"engine.offload_directory {tmp_path}/file/inside cannot be used"):
        offload_directory.claim(tmp_path / "file" / "inside", 0, 1000, 1)
