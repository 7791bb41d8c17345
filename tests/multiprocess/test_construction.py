"""However an engine spreads its model, it begins with the same weights, and no rank holds more than its part."""

from pathlib import Path

import pytest

from deberta_scale.config_file import load
from deberta_scale.model.sizes import parameter_count
from tests.launching import run_worker

WORKER = Path(__file__).with_name("construction_worker.py")


@pytest.mark.parametrize("world_size", [1, 2])
def test_masters_are_the_weights_of_the_model_built_whole_and_parameters_their_rounding(
    config_path: Path, tmp_path: Path, world_size: int
) -> None:
    spreads = [(0, "fp32"), (1, "bf16"), (2, "fp16"), (3, "fp32"), (3, "bf16")]
    groups = [[f"engine.zero_stage={stage}", f"engine.precision={precision}"] for stage, precision in spreads]
    groups.append(["engine.offload_parameters=cpu", "model.conv_kernel_size=3", "model.embedding_size=24"])
    results = run_worker(WORKER, tmp_path, world_size, "build", config_path, *groups)
    for group, found in zip(groups, results, strict=True):
        assert found == {"wrong": [], "missing": [], "rounded": []}, group


def test_no_rank_of_stage_3_holds_more_than_its_share_and_one_module(config_path: Path, tmp_path: Path) -> None:
    options = ["engine.precision=bf16", "model.num_hidden_layers=12"]
    (found,) = run_worker(WORKER, tmp_path, 2, "peaks", config_path, options)
    count = parameter_count(load(config_path, options).model)
    word_table = 2 * count.word_embeddings  # bytes of the largest parameter
    assert found["held"] == pytest.approx(2 * count.total / 2, rel=0.01)
    assert found["materialising"] < found["held"] + 1.5 * word_table < 2 * count.total
    assert found["filled"] == pytest.approx(count.total / 2, rel=0.01)
    assert found["at_once"] == count.word_embeddings / 2
