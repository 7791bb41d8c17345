"""The doctor names what a machine or a group of ranks lacks."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from deberta_scale import doctor
from deberta_scale.doctor_ranks import compare_versions
from deberta_scale.extension_cache import building_alone, clear_killed_builds
from tests.launching import ROOT, start

DOCTOR = ROOT / "launch" / "doctor.py"


def doctor_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCTOR), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_this_machine_can_train(tmp_path: Path) -> None:
    findings = {finding.what: finding for finding in doctor.examine(tmp_path)}
    assert not [finding for finding in findings.values() if finding.level == "problem"]
    assert "torch" in findings["packages"].text and findings["directory"].text.startswith(str(tmp_path))
    assert findings["attention"].level == "ok" and "compiled" in findings["attention"].text
    assert not list(tmp_path.iterdir())


def test_a_processor_without_what_the_compiled_kernel_needs_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    found = doctor.attention()
    assert found.level == "warning" and "avx512_bf16" in found.text and "several times slower" in found.text


def test_another_version_than_the_required_one_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy==0.1", "no-such-package>=1"])
    found = doctor.packages()
    assert found.level == "problem"
    assert "not ==0.1" in found.text and "no-such-package is missing" in found.text and "pip install" in found.text


def test_a_project_that_is_not_installed_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", not_installed)
    monkeypatch.setattr(doctor, "version", not_installed)
    found = doctor.packages()
    assert found.level == "problem" and "deberta-scale is missing" in found.text and "pip install" in found.text
    assert doctor.versions()["torch"] == "missing"


@pytest.mark.parametrize("ranks", [{}, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}])
def test_a_machine_without_torch_is_told_so(tmp_path: Path, ranks: dict[str, str]) -> None:
    program = (
        f"import runpy, sys; sys.modules['torch'] = None; sys.argv = ['doctor.py', '--directory', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(DOCTOR)!r}, run_name='__main__')"
    )
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | ranks
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert "problem  devices: torch cannot be loaded" in done.stdout and "next: repair" in done.stdout
    assert ("problem  ranks: they do not meet" in done.stdout) == bool(ranks)


def test_ranks_that_cannot_agree_where_to_meet_are_told_so(tmp_path: Path) -> None:
    """As under an mpirun whose MPI cannot be loaded."""
    program = (
        f"import runpy, sys; sys.modules['mpi4py'] = None; sys.argv = ['doctor.py', '--directory', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(DOCTOR)!r}, run_name='__main__')"
    )
    mpi = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | mpi, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "problem  ranks: they do not meet" in done.stdout and "MPI cannot be loaded" in done.stdout


def test_a_directory_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = doctor.disk(tmp_path / "file" / "below")
    assert found.level == "problem" and str(tmp_path / "file" / "below") in found.text


def test_the_lock_of_a_killed_build_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert doctor.extensions().level == "ok"
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam" / "lock").write_text("")
    found = doctor.extensions()
    assert found.level == "warning" and "cpu_adam" in found.text
    with building_alone(tmp_path):
        found = doctor.extensions()
    assert found.level == "ok" and "another process is building" in found.text


def test_the_ninja_of_this_environment_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    with building_alone(tmp_path):
        found = shutil.which("ninja")
    assert found == str(Path(sys.executable).with_name("ninja"))


def test_a_killed_build_is_cleared_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "build.ninja").write_text("")
    (tmp_path / "killed" / "lock").write_text("")
    with building_alone(tmp_path):
        clear_killed_builds(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["whole"]
    assert str(tmp_path / "killed") in capsys.readouterr().err


def test_hosts_with_other_versions_are_named() -> None:
    assert compare_versions({"n1": {"torch": "2.13"}, "n2": {"torch": "2.13"}}).level == "ok"
    found = compare_versions({"n1": {"torch": "2.13"}, "n2": {"torch": "2.12"}})
    assert found.level == "problem" and "n2 has torch 2.12, n1 2.13" in found.text


def test_two_ranks_look_at_each_other(tmp_path: Path) -> None:
    codes, outputs = start(2, DOCTOR, "--directory", tmp_path, "--json").wait()
    assert codes == [0, 0], outputs
    lines = [line for line in outputs[0].splitlines() if line.startswith("{")]
    findings = [finding for finding in json.loads(lines[-1])["findings"]]
    told = {finding["what"]: finding for finding in findings}
    assert "seen by all 2 ranks" in told["shared directory"]["text"]
    assert len([finding for finding in findings if finding["what"] == "all-reduce"]) == 3
    assert not list(tmp_path.iterdir())


def test_ranks_without_a_directory_all_end_with_the_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    codes, outputs = start(2, DOCTOR, "--directory", tmp_path / "file" / "below").wait()
    assert codes == [1, 1], outputs
    assert "problem  directory:" in outputs[0] and "problem  shared directory:" in outputs[0]
    assert "next: repair" in outputs[0] and "Traceback" not in outputs[0] + outputs[1]
