"""Adversarial training gives the same numbers however a real engine spreads its model, and in
DistributedDataParallel, dropout included."""

from pathlib import Path
from typing import Any

import pytest

from tests.launching import run_worker

WORKER = Path(__file__).with_name("sift_worker.py")
SMALL = [
    "model.initializer_range=0.1",
    "model.hidden_dropout_prob=0.1",
    "model.attention_probs_dropout_prob=0.1",
    "train.steps=3",
]
CHECKPOINTED = "zero_stage=3 engine.activation_checkpointing=non_reentrant"
EXACT = ["zero_stage=1", "zero_stage=2", "zero_stage=3", CHECKPOINTED]
ROUNDED = [
    f"zero_stage={stage} engine.precision={precision}" for stage, precision in ((1, "bf16"), (3, "bf16"), (3, "fp16"))
]


def numbers_of(directory: Path, config: str, world_size: int, task: str, groups: list[str]) -> Any:
    """What the task gives, by group."""
    path = directory / "config.yaml"
    path.write_text(config)
    words = [[*SMALL, *f"engine.{group}".split()] for group in groups]
    return dict(zip(groups, run_worker(WORKER, directory, world_size, task, path, *words), strict=True))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, small_config: str) -> Any:
    """Of one process without ZeRO: of each step the task's loss, the penalty and the norm of the gradient."""
    return numbers_of(tmp_path_factory.mktemp("one"), small_config, 1, "train", ["zero_stage=0"])["zero_stage=0"]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory, small_config: str) -> Any:
    return numbers_of(tmp_path_factory.mktemp("two"), small_config, 2, "train", [*EXACT, *ROUNDED])


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for step, expected_step in zip(found, expected, strict=True):
        assert step == pytest.approx(expected_step, rel=tolerance)


@pytest.mark.parametrize("group", EXACT)
def test_stages_accumulation_and_checkpointing_give_one_process_s_numbers(
    group: str, expected: Any, on_two_ranks: Any
) -> None:
    assert all(penalty > 0.01 for _, penalty, _ in expected), "the penalty is part of what is compared"
    assert_close(on_two_ranks[group], expected, 1e-4)


@pytest.mark.parametrize("group", ROUNDED)
def test_16_bits_stay_near_and_find_a_perturbation_as_bad(group: str, expected: Any, on_two_ranks: Any) -> None:
    """A penalty is small, and hangs on a direction that is rounded."""
    for (loss, penalty, norm), (expected_loss, expected_penalty, expected_norm) in zip(
        on_two_ranks[group], expected, strict=True
    ):
        assert (loss, norm) == pytest.approx((expected_loss, expected_norm), rel=0.05)
        assert penalty == pytest.approx(expected_penalty, rel=0.2)


def test_distributed_data_parallel_may_be_called_for_every_pass(tmp_path: Path, small_config: str) -> None:
    (found,) = numbers_of(tmp_path, small_config, 2, "data_parallel", ["precision=fp32"]).values()
    assert found["difference"] <= 1e-5 * found["largest"]
