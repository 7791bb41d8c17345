"""Traffic, time, fit and saving agree with hand arithmetic, and every option that has no effect is an error."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from deberta_scale import plan_machine
from deberta_scale.config import Config, ConfigError
from deberta_scale.model.sizes import SIZES
from deberta_scale.plan import Hardware, Plan, make_plan
from deberta_scale.plan_communication import communication_per_step
from deberta_scale.plan_machine import EFFICIENCY, LINK_EFFICIENCY, MACHINES, OVERLAP, RUNTIME_BYTES, StepModel, fits
from deberta_scale.plan_saving import COPY_RATE, NODE_HOURS_BETWEEN_FAILURES, plan_saving, young_interval
from deberta_scale.plan_text import does_not_fit
from tests.unit.test_plan import XXLARGE, config_of, plan_command

BASE_TOTAL, XXLARGE_TOTAL = 184_944_996, 1_567_828_068


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_per_parameter"),
    [
        (0, "fp32", 2 * 4),
        (1, "fp32", 2 * 4 + 4),
        (1, "bf16", 2 * 2 + 2),
        (2, "bf16", 4 * (2 * 2) + 2),  # four micro-batches
        (3, "bf16", 4 * (2 + 2)),  # base stays gathered from forward to backward
    ],
)
def test_bytes_that_leave_a_rank_in_a_step(stage: int, precision: str, bytes_per_parameter: int) -> None:
    config = config_of(SIZES["v3-base"], micro=2, sequences=32, zero_stage=stage, precision=precision)
    sent = communication_per_step(config, 4)
    assert sent.total == pytest.approx(bytes_per_parameter * BASE_TOTAL * 3 / 4, rel=1e-6)
    assert communication_per_step(config, 1).total == 0


def test_what_does_not_stay_gathered_is_gathered_again_for_backward() -> None:
    config = config_of(SIZES["v2-xxlarge"], sequences=8, zero_stage=3, precision="bf16")
    sent = communication_per_step(config, 8)
    assert sent.gathered_for_backward == pytest.approx(2 * (XXLARGE_TOTAL - 1e9) * 7 / 8, rel=1e-6)
    checkpointed = config_of(
        SIZES["v2-xxlarge"], sequences=8, precision="bf16", activation_checkpointing="non_reentrant"
    )
    assert communication_per_step(checkpointed, 8) == sent


def test_quantization_and_a_second_copy_send_less() -> None:
    zeropp = {"quantized_weights": True, "quantized_gradients": True, "hpz_partition_size": 8}
    plain, less = (
        communication_per_step(config_of(SIZES["v2-xxlarge"], sequences=64, precision="bf16", **options), 64)
        for options in ({}, zeropp)
    )
    assert less.gathered_for_forward * 2 == pytest.approx(plain.gathered_for_forward)
    assert less.gradients * 4 == pytest.approx(plain.gradients)
    assert less.between_machines == less.total - less.gathered_for_backward
    assert plain.between_machines == plain.total


def plan_on(machine: str, world_size: int = 8, config: Config | None = None, **known: Any) -> Plan:
    chosen = config or config_of(SIZES["v3-base"], micro=8, sequences=1024, zero_stage=1, precision="bf16")
    return make_plan(chosen, world_size, Hardware(machine=machine, **known))


def model_on(machine: str, world_size: int = 8, config: Config | None = None, **known: Any) -> StepModel:
    plan = plan_on(machine, world_size, config, **known)
    assert plan.machine is not None and plan.machine.model is not None
    return plan.machine.model


def test_time_on_a_machine_by_hand() -> None:
    plan, model = plan_on("a100-40", 16), model_on("a100-40", 16)
    compute = plan.flops_per_step / 16 / (312e12 * EFFICIENCY)
    communication = plan.communication.total / (400e9 / 8) / LINK_EFFICIENCY
    assert model.compute_seconds == pytest.approx(compute)
    assert model.communication_seconds == pytest.approx(communication)
    assert model.hidden_seconds == 0.0  # stage 1 sums when backward is over
    assert plan.step_seconds == pytest.approx(compute + communication)
    assert plan.tokens_per_second == pytest.approx(1024 * 512 / (compute + communication))
    assert plan.days == pytest.approx(10 * plan.step_seconds / 86400)


def test_stage_3_hides_a_part_of_its_communication() -> None:
    model = model_on("h100", 8, config_of(SIZES["v3-base"], micro=8, sequences=1024, precision="bf16"))
    assert model.hidden_seconds == pytest.approx(OVERLAP * model.communication_seconds)
    assert model.hidden_seconds > 0


def test_checkpointing_costs_a_third() -> None:
    engine = {"precision": "bf16", "activation_checkpointing": "non_reentrant"}
    checkpointed = model_on("h100", 8, config_of(SIZES["v3-base"], micro=8, sequences=1024, **engine))
    plain = model_on("h100", 8, config_of(SIZES["v3-base"], micro=8, sequences=1024, precision="bf16"))
    assert checkpointed.compute_seconds == pytest.approx(plain.compute_seconds * 4 / 3)


def test_a_measured_rate_replaces_the_model_with_its_communication() -> None:
    """A run that takes as long as planned, measured and planned again, takes as long."""
    planned = plan_on("a100-40", 16)
    again = plan_on("a100-40", 16, tflops_per_rank=planned.tflops_per_rank)
    assert again.machine is not None and again.machine.model is None
    assert again.step_seconds == pytest.approx(planned.step_seconds)
    assert plan_on("h100", tflops_per_rank=100.0).step_seconds == pytest.approx(planned.flops_per_step / 8 / 100e12)


def test_a_slower_network_takes_longer() -> None:
    fast, slow = (model_on("a100-80", 16, network_gbit=gbit) for gbit in (400.0, 100.0))
    assert slow.communication_seconds == pytest.approx(4 * fast.communication_seconds)


def test_nodes_have_as_many_gpus_as_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    halved = {"half": replace(MACHINES["h100"], gpus=4, host_bytes=1e12)}
    monkeypatch.setattr(plan_machine, "MACHINES", halved)
    config = config_of(SIZES["v3-base"], micro=8, sequences=1024, zero_stage=1, offload_optimizer="cpu")
    plan = plan_on("half", 8, config)
    assert plan.machine is not None and plan.machine.nodes == plan.saving.nodes == 2
    assert plan.machine.host_needed == 4 * plan.memory.host
    with pytest.raises(ConfigError, match="--machine half: 6 ranks do not fill nodes of 4 GPUs"):
        plan_on("half", 6)


def test_what_is_said_not_to_fit_is_what_was_found_not_to_fit() -> None:
    """The host's memory for offloaded states, without copies for checkpoints, which are done without."""
    deep = SIZES["v2-xxlarge"].model_copy(update={"num_hidden_layers": 1700})
    offload = {"offload_optimizer": "cpu", "offload_parameters": "cpu", "activation_checkpointing": "non_reentrant"}
    plan = plan_on("v100-32", 8, config_of(deep, 64, precision="fp16", **offload))
    assert plan.machine is not None and plan.machine.host_needed == 8 * plan.memory.host
    assert plan.machine.device_needed < plan.machine.device_usable
    needed, usable = plan.machine.host_needed / 1e9, 0.95 * 768 * 2**30 / 1e9
    assert needed > usable
    assert f"states of a node need {needed:,.2f} GB, of {usable:,.2f} GB" in str(does_not_fit(plan))


@pytest.mark.parametrize("checkpointing", ["none", "non_reentrant"])
def test_each_change_is_tried_once(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Config] = []

    def never_fits(config: Config, *rest: object) -> bool:
        tried.append(config)
        return False

    monkeypatch.setattr(plan_machine, "fits", never_fits)
    options = {"zero_stage": 3, "precision": "bf16", "activation_checkpointing": checkpointing}
    machine = plan_on("h100", 8, config_of(SIZES["v3-base"], micro=4, sequences=64, **options)).machine
    assert machine is not None and "nothing of micro-batch" in str(machine.what_would_fit)
    assert len({config.model_dump_json() for config in tried}) == len(tried)


def test_what_does_not_fit_names_changes_that_do() -> None:
    config = config_of(SIZES["v2-xxlarge"], micro=8, sequences=64, precision="fp16")
    machine = plan_on("v100-32", 8, config).machine
    assert machine is not None and machine.device_needed > machine.device_bytes
    assert machine.what_would_fit is not None
    changes = dict(change.split("=") for change in machine.what_would_fit.split())
    engine = {key.removeprefix("engine."): value for key, value in changes.items() if key.startswith("engine.")}
    micro = int(changes.get("batch.micro_sequences", "8"))
    changed = config_of(SIZES["v2-xxlarge"], micro=micro, sequences=64, **{"precision": "fp16"} | engine)
    assert fits(changed, MACHINES["v100-32"], 8) and not fits(config, MACHINES["v100-32"], 8)


def test_a_smaller_micro_batch_is_preferred_when_it_is_enough() -> None:
    config = config_of(SIZES["v3-base"], micro=64, sequences=512, zero_stage=1, precision="bf16")
    machine = plan_on("a100-40", 8, config).machine
    assert machine is not None and str(machine.what_would_fit).startswith("batch.micro_sequences=")


def test_the_command_says_what_does_not_fit() -> None:
    words = [XXLARGE, "engine.activation_checkpointing=none", "engine.precision=fp16", "--machine", "v100-32"]
    done = plan_command(*words, "--nodes", "4")
    assert done.returncode == 1
    assert "error: does not fit v100-32: each GPU needs" in done.stderr and "would fit: " in done.stderr
    assert json.loads(plan_command(*words, "--nodes", "4", "--json").stdout)["machine"]["what_would_fit"]
    fitting = plan_command(*words, "engine.activation_checkpointing=non_reentrant", "--nodes", "4")
    assert (fitting.returncode, fitting.stderr) == (0, "")
    assert "token places a second" in fitting.stdout and "ASSUMPTIONS" in fitting.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--machine", "tpu"), "--machine tpu: known are v100-32, a100-40"),
        (("--machine", "v100-32"), "no units for bf16; use engine.precision=fp16"),
        (("--machine", "h100", "--world-size", "8"), "give --nodes instead"),
        (("--machine", "h100", "--nodes", "0"), "--nodes 0: a run has at least 1 node"),
        *(
            (("--machine", "h100", "--nodes", "2", "--network-gbit", value), f"--network-gbit {value}: give a positive")
            for value in ("0", "-1", "nan", "inf")
        ),
        (("--machine", "h100", "--network-gbit", "400"), "no effect on 1 node, which sends nothing to others"),
        (
            ("--machine", "h100", "--nodes", "2", "--network-gbit", "400", "--tflops-per-rank", "50"),
            "no effect with --tflops-per-rank: a measured rate contains communication",
        ),
        (("--tflops-per-rank", "inf"), "--tflops-per-rank inf: give a positive rate"),
        (("--machine", "h100", "--tflops-per-rank", "2000"), "has a peak of 989 TFLOP/s"),
        (("--nodes", "4"), "--nodes has an effect with --machine only"),
        (("--network-gbit", "4"), "--network-gbit has an effect with --machine only"),
        (("--blocked-seconds", "-1"), "--blocked-seconds -1: give a positive number"),
        (("--write-rate", "0"), "--write-rate 0: give a positive number"),
        (("--node-hours-between-failures", "nan"), "--node-hours-between-failures nan: give a positive number"),
    ],
)
def test_options_without_sense_are_one_error(arguments: tuple[str, ...], expected: str) -> None:
    done = plan_command(XXLARGE, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and expected in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_takes_12_bytes_a_parameter(stage: int) -> None:
    plan = make_plan(config_of(SIZES["v3-base"], zero_stage=stage, precision="fp32"), 2)
    assert plan.saving.checkpoint == 12 * BASE_TOTAL
    assert plan.saving.num_kept == 1  # of 10 steps only the last one is saved
    assert plan.saving.disk == 2 * 12 * BASE_TOTAL
    assert plan.saving.write_seconds == pytest.approx(12 * BASE_TOTAL / 1e9)
    assert plan.export == 4 * BASE_TOTAL


def test_training_waits_for_the_copy_or_with_states_on_disk_for_the_write() -> None:
    copied = plan_saving(config_of(SIZES["v3-base"]), world_size=4, nodes=1)
    assert copied.blocked_seconds == pytest.approx(12 * BASE_TOTAL / 4 / COPY_RATE)
    swapped = config_of(SIZES["v3-base"], offload_optimizer="disk", offload_directory="/scratch")
    assert plan_saving(swapped, 4, 1).blocked_seconds == pytest.approx(12 * BASE_TOTAL / 1e9)
    assert make_plan(swapped, 4).memory.disk == pytest.approx(16 * BASE_TOTAL / 4)
    assert make_plan(swapped, 4).memory.save_copy == 0


def test_the_interval_is_youngs() -> None:
    """10 seconds a save, a failure every 198 hours on 32 nodes: about every hour."""
    assert young_interval(10.0, 198 * 3600) == pytest.approx(63 * 60, rel=0.01)
    saving = plan_saving(config_of(SIZES["v3-base"]), 256, 32, blocked_seconds=10.0)
    assert round(NODE_HOURS_BETWEEN_FAILURES / 32) == 198
    assert saving.interval_seconds == pytest.approx(math.sqrt(2 * 10 * NODE_HOURS_BETWEEN_FAILURES / 32 * 3600))


def test_the_interval_in_steps_is_within_the_run() -> None:
    saving = plan_saving(config_of(SIZES["v3-base"]), 256, 32, blocked_seconds=10.0)
    steps = saving.steps_between(step_seconds=2.0, steps=100_000)
    assert steps == round(saving.interval_seconds / 2.0)
    assert saving.steps_between(2.0, steps=100) == 100 and saving.steps_between(1e6, 100) == 1


def test_an_interval_is_never_shorter_than_a_save() -> None:
    saving = plan_saving(config_of(SIZES["v3-base"]), 8, 1, write_rate=1e5)
    assert saving.interval_seconds == saving.write_seconds > 20_000


def test_unknown_machines_are_errors_in_the_package_too() -> None:
    with pytest.raises(ConfigError, match="known are"):
        plan_on("cray")


def test_the_runtime_is_counted() -> None:
    plan = plan_on("h100")
    assert plan.machine is not None
    assert plan.machine.device_needed == plan.memory.device_peak + RUNTIME_BYTES
