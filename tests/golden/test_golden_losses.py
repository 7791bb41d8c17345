"""What training gives is what it gave before, and what it gives a second time."""

import json
from pathlib import Path

import pytest

from tests.launching import PRETRAIN, read_log, start

GOLDEN = Path(__file__).parent / "losses.json"
"""Losses of the small config's first 50 steps in fp32 on one rank. A change of them is to be meant: then write anew
what the failing test prints."""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_two_runs_are_bit_for_bit_the_same(config_path: Path, tmp_path: Path, dropout: float) -> None:
    """R13: and without dropout, whose random numbers are torch's, those of the golden file."""
    options = ["train.steps=50", f"model.hidden_dropout_prob={dropout}", "engine.zero_stage=1"]
    runs = [tmp_path / "first", tmp_path / "second"]
    started = [start(1, PRETRAIN, config_path, f"run_dir={run_dir}", *options) for run_dir in runs]
    for ranks in started:
        codes, outputs = ranks.wait()
        assert codes == [0], outputs[0][-3000:]
    first, second = ([record["loss"] for record in read_log(run_dir)] for run_dir in runs)
    assert first == second and len(first) == 50
    if not dropout:
        assert first == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3), json.dumps(first)
