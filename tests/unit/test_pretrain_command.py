"""Which ranks say what ends a run: none is silent about what it alone knows, none repeats what all say."""

import runpy
import sys
from pathlib import Path

import pytest

from deberta_scale.train import distributed, loop
from deberta_scale.train.distributed import AgreedError
from tests.launching import PRETRAIN


class Ended(Exception):
    """Instead of the end of the process; the argument is its code."""


@pytest.mark.parametrize(
    ("rank", "error", "told"),
    [
        (0, AgreedError("the disk is full"), "error: the disk is full\n"),
        (1, AgreedError("the disk is full"), ""),
        (0, ValueError("bad shard"), "error: bad shard\n"),
        (1, ValueError("bad shard"), "error: rank 1: bad shard\n"),
    ],
)
def test_an_error_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    small_config: str,
    rank: int,
    error: ValueError,
    told: str,
) -> None:
    class Failing:
        def __init__(self, *arguments: object) -> None:
            raise error

    def end(code: int) -> None:
        raise Ended(code)

    (tmp_path / "config.yaml").write_text(small_config)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", str(tmp_path / "config.yaml")])
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29555")
    monkeypatch.setattr(loop, "Run", Failing)
    monkeypatch.setattr(distributed, "end_process", end)
    with pytest.raises(Ended, match="1"):
        runpy.run_path(str(PRETRAIN), run_name="__main__")
    assert capsys.readouterr().err == told
