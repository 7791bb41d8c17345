"""Files are there whole, or as they were before, whoever fails and whoever else writes them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_scale.durable import write_durably, written_durably


def test_a_block_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, "old é")
    with pytest.raises(KeyError), written_durably(path) as file:
        file.write(b"half of the n")
        raise KeyError
    assert path.read_text(encoding="utf-8") == "old é"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_is_killed_while_it_writes_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, "old")
    program = (
        "import os, signal, sys, pathlib, deberta_scale.durable as d\n"
        "with d.written_durably(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_durably(path, "new")
    assert path.read_text() == "new"


def test_two_processes_that_write_the_same_file_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The second one begins and ends while the first has written half."""
    path = tmp_path / "file"
    program = "import sys, pathlib, deberta_scale.durable as d; d.write_durably(pathlib.Path(sys.argv[1]), 'content')"
    with written_durably(path) as file:
        file.write(b"con")
        file.flush()
        subprocess.run([sys.executable, "-c", program, path], check=True)
        assert path.read_text() == "content"
        file.write(b"tent")
    assert path.read_text() == "content" and os.listdir(tmp_path) == ["file"]
