"""Whoever started the ranks, the process group finds its variables."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_scale.train.distributed import announce
from deberta_scale.train.launch_environment import Launch
from tests.launching import ROOT

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("environment")
def test_what_srun_told_is_announced() -> None:
    announce(Launch(5, 8, 1, 4, "srun", "n1", 12345))
    assert [os.environ[name] for name in NAMES] == ["5", "8", "1", "4", "n1", "12345"]


@pytest.mark.usefixtures("environment")
def test_one_process_gets_a_free_port_of_its_own() -> None:
    announce(Launch(0, 1, 0, 1, "single process", "127.0.0.1"))
    with socket.socket() as listener:
        listener.bind((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))


PRINT_AGREED = """
import json, os
from deberta_scale.train.distributed import announce
from deberta_scale.train.launch_environment import read_launch
announce(read_launch(os.environ))
print(json.dumps([os.environ[name] for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")]))
"""


def test_ranks_of_mpirun_agree_on_a_port(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("mpirun")
    if not program.exists():
        pytest.skip("no mpirun beside this Python; install the package mpich")
    script = tmp_path / "agree.py"
    script.write_text(PRINT_AGREED)
    output = subprocess.run(
        [program, "-n", "3", sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    told = re.findall(r"\[.*?\]", output)  # mpirun may join lines
    ranks, addresses, ports = zip(*map(json.loads, told), strict=True)
    assert sorted(ranks) == ["0", "1", "2"]
    assert set(addresses) == {"127.0.0.1"} and len(set(ports)) == 1
