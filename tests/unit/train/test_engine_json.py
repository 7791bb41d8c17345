"""What DeepSpeed is told, and the sizes that `plan` counts with."""

from typing import Any

import pytest

from deberta_scale.config import ConfigError, EngineConfig
from deberta_scale.model.sizes import SIZES, layer_parameters, parameter_count
from deberta_scale.train.buffers import choose_buffers
from deberta_scale.train.engine_json import deepspeed_json, refuse_without_effect
from deberta_scale.train.launch_environment import Launch
from tests.unit.test_plan import config_of

XXLARGE = SIZES["v2-xxlarge"]


def launch_of(world_size: int, local_world_size: int) -> Launch:
    return Launch(0, world_size, 0, local_world_size, "launcher")


def test_a_bucket_holds_a_layer_and_grows_with_the_ranks() -> None:
    buckets = {ranks: choose_buffers(XXLARGE, EngineConfig(), ranks).reduce_bucket for ranks in (1, 8, 256, 4096)}
    assert buckets[1] == buckets[8] == layer_parameters(XXLARGE)
    assert buckets[256] == 256 * 500_000
    assert buckets[4096] == 200_000_000


def test_a_small_model_has_no_buffer_larger_than_itself() -> None:
    small = SIZES["v3-xsmall"]
    buffers, total = choose_buffers(small, EngineConfig(), 4096), parameter_count(small).total
    assert max(buffers.reduce_bucket, buffers.live) <= total


def test_one_rank_gathers_nothing_ahead_unless_its_parameters_are_elsewhere() -> None:
    assert choose_buffers(XXLARGE, EngineConfig(), 1).prefetch == 0
    assert choose_buffers(XXLARGE, EngineConfig(), 2).prefetch == layer_parameters(XXLARGE)
    assert choose_buffers(XXLARGE, EngineConfig(offload_parameters="cpu"), 1).prefetch > 0


def test_an_optimizer_on_disk_is_named_with_its_directory_and_small_buffers() -> None:
    config = config_of(XXLARGE, offload_optimizer="disk", offload_directory="/fast/disk")
    zero = deepspeed_json(config, 1, on_gpu=False)["zero_optimization"]
    assert (zero["offload_optimizer"]["device"], zero["offload_optimizer"]["nvme_path"]) == ("nvme", "/fast/disk")
    assert (zero["sub_group_size"], zero["stage3_prefetch_bucket_size"], zero["overlap_comm"]) == (10**8, 0, False)


def test_options_of_large_clusters_are_passed_on() -> None:
    options: dict[str, Any] = {"hpz_partition_size": 8, "quantized_weights": True, "quantized_gradients": True}
    engine = EngineConfig(**options)
    refuse_without_effect(engine, launch_of(64, 8), on_gpu=True)
    zero = deepspeed_json(config_of(XXLARGE, **options), 64, on_gpu=True)["zero_optimization"]
    assert all(zero[f"zero_{key}"] == value for key, value in options.items())


@pytest.mark.parametrize(
    ("options", "world_size", "local_world_size", "on_gpu", "message"),
    [
        ({"hpz_partition_size": 3}, 8, 8, True, "must divide the 8 ranks and be less; of them fit: 1, 2, 4"),
        ({"hpz_partition_size": 8}, 8, 8, True, "must divide the 8 ranks and be less"),
        ({"quantized_weights": True}, 8, 8, False, "quantizes on GPUs only"),
        ({"quantized_weights": True, "precision": "fp32"}, 8, 8, True, "fewer bits than 16"),
        ({"quantized_weights": True}, 1, 1, True, "a single rank gathers nothing"),
        ({"quantized_gradients": True}, 8, 8, True, "over several machines"),
    ],
)
def test_what_would_change_nothing_is_refused(
    options: dict[str, Any], world_size: int, local_world_size: int, on_gpu: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        refuse_without_effect(EngineConfig(**options), launch_of(world_size, local_world_size), on_gpu)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload_parameters": "disk"}, "every one of its buffers must hold the whole word table"),
        ({"offload_optimizer": "disk"}, "needs offload_directory"),
        ({"offload_optimizer": "cpu", "offload_directory": "x"}, "no effect with offload_optimizer cpu"),
        ({"offload_optimizer": "disk", "offload_directory": "x", "zero_stage": 2}, "disk needs zero_stage 3, not 2"),
        ({"zero_stage": 2, "hpz_partition_size": 2}, "hpz_partition_size has an effect at zero_stage 3 only"),
        ({"zero_stage": 1, "quantized_gradients": True}, "quantized_gradients has an effect at zero_stage 3 only"),
    ],
)
def test_contradictions_are_told_by_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**options)
