"""The plan agrees with hand arithmetic, with torch's own accounts, and tells clearly what cannot run."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from deberta_scale.config import Config, ConfigError, ModelConfig
from deberta_scale.kernels import cpu_build, reference
from deberta_scale.kernels.choice import Choice
from deberta_scale.model import attention
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.model.sizes import SIZES, parameter_count
from deberta_scale.plan import Hardware, make_plan
from deberta_scale.plan_machine import RECOMPUTATION
from deberta_scale.plan_memory import activation_bytes, memory_per_rank
from deberta_scale.plan_text import duration
from deberta_scale.plan_text import size as in_bytes
from tests.rows import batch_of, small_model_config

ROOT = Path(__file__).parent.parent.parent
XXLARGE = "configs/pretrain/xxlarge_1_5b.yaml"


def config_of(model: ModelConfig, length: int = 512, micro: int = 1, sequences: int = 64, **engine: Any) -> Config:
    return Config.model_validate(
        {
            "run_dir": "runs/x",
            "model": model,
            "data": {"shards": "no/such/shards", "sequence_length": length, "masking": {"probability": 0.25}},
            "batch": {"sequences": sequences, "micro_sequences": micro},
            "optimizer": {"learning_rate": 1e-3},
            "engine": engine,
            "train": {"steps": 10},
        }
    )


def plan_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/plan.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_per_parameter"),
    [
        (0, "fp32", (4, 4, 8)),
        (1, "fp32", (4, 4, 12 / 4)),  # ZeRO's optimizers copy fp32 weights as well
        (3, "fp32", (4 / 4, 4 / 4, 12 / 4)),
        (1, "bf16", (2, 2, 12 / 4)),
        (2, "bf16", (2, 2 / 4, 12 / 4)),
        (3, "bf16", (2 / 4, 2 / 4, 12 / 4)),
        (3, "fp16", (2 / 4, 2 / 4, 12 / 4)),
    ],
)
def test_states_of_one_of_four_ranks(stage: int, precision: str, bytes_per_parameter: tuple[float, ...]) -> None:
    config = config_of(SIZES["v3-base"], zero_stage=stage, precision=precision)
    memory, total = memory_per_rank(config, 4), 184_944_996
    held = (memory.parameters, memory.gradients, memory.optimizer)
    assert held == tuple(total * num_bytes for num_bytes in bytes_per_parameter)


def test_states_of_the_largest_model_on_one_rank_are_16_bytes_a_parameter() -> None:
    memory = memory_per_rank(config_of(SIZES["v2-xxlarge"], zero_stage=3, precision="bf16"), 1)
    assert memory.parameters + memory.gradients + memory.optimizer == 16 * 1_567_828_068  # 25.1 GB


def test_offload_moves_states_to_the_host() -> None:
    offload = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
    offloaded = memory_per_rank(config_of(SIZES["v3-base"], zero_stage=3, precision="bf16", **offload), 4)
    on_device = memory_per_rank(config_of(SIZES["v3-base"], zero_stage=3, precision="bf16"), 4)
    assert on_device.host == 0
    assert offloaded.host == 184_944_996 * (2 + 2 + 12 + 4) / 4
    assert on_device.device_peak - offloaded.device_peak == 184_944_996 * (2 + 2 + 12) / 4


def test_optimizer_offload_leaves_the_gradients_of_stage_1_on_the_device() -> None:
    memory = memory_per_rank(config_of(SIZES["v3-base"], zero_stage=1, precision="bf16", offload_optimizer="cpu"), 4)
    assert "optimizer" in memory.on_host and "gradients" not in memory.on_host


@pytest.mark.parametrize(
    ("size", "world_size", "live_parameters"),
    [("v3-base", 4, 184_944_996), ("v2-xxlarge", 4, 10**9), ("v3-base", 1, None)],
)
def test_stage_3_gathers_at_most_what_deepspeed_keeps_alive(
    size: str, world_size: int, live_parameters: int | None
) -> None:
    memory = memory_per_rank(config_of(SIZES[size], zero_stage=3, precision="bf16"), world_size)
    word_table = parameter_count(SIZES[size]).word_embeddings
    assert memory.gathered == (0 if live_parameters is None else 2 * (live_parameters + word_table))


def test_fp32_scores_and_logits_by_hand() -> None:
    """One layer of base at 512 places, for each of 12 heads: 512 x 512 probabilities, twice 512 x 512 table rows."""
    plan = make_plan(config_of(SIZES["v3-base"], micro=2, precision="bf16"))
    assert plan.fp32_scores_per_layer == 4 * 2 * 12 * 512 * (512 + 2 * 512)
    assert plan.memory.logits == pytest.approx(2 * 128 * 128_100 * 2 + 2**26, rel=1e-4)


STYLES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v2 with convolution": {"conv_kernel_size": 3},
    "v1": {"share_att_key": False, "position_buckets": 0, "norm_rel_ebd": "none"},
    "c2p only": {"pos_att_type": ("c2p",)},
    "p2c only": {"pos_att_type": ("p2c",)},
    "narrow words": {"embedding_size": 16},
    "dropout": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
PREDICTED = [list(range(0, 64, 4))] * 2


def small_model(style: str) -> ModelConfig:
    if style == "baseline":
        shape = {"vocab_size": 90, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
        return ModelConfig(baseline=True, num_hidden_layers=3, max_position_embeddings=64, **shape)
    return small_model_config(**STYLES[style])


@pytest.fixture
def reference_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the formulas are of, and torch can count in."""
    monkeypatch.setattr(cpu_build, "why_not", lambda dtype: "torch counts")
    monkeypatch.setattr(attention, "choose", lambda *_, **__: Choice("reference", reference.attention, "counts"))


def bytes_kept_by_autograd(model: PretrainingModel) -> int:
    batch = batch_of([[64], [64]], 64, PREDICTED)
    given = [*model.parameters(), *(value for value in vars(batch).values() if isinstance(value, torch.Tensor))]
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model.logits(batch)
    assert logits.requires_grad
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in known)


@pytest.mark.usefixtures("reference_attention")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("style", [*STYLES, "baseline"])
def test_activations_are_what_autograd_keeps(style: str, precision: str) -> None:
    model = PretrainingModel(small_model(style)).to(torch.float32 if precision == "fp32" else torch.bfloat16)
    kept, recomputed = activation_bytes(config_of(model.config, 64, 2, precision=precision), checkpointing=False)
    assert recomputed == 0
    assert kept == pytest.approx(bytes_kept_by_autograd(model), rel=0.02)  # statistics of LayerNorm are left out


@pytest.mark.usefixtures("reference_attention")
@pytest.mark.parametrize("style", [*STYLES, "baseline"])
def test_flops_are_those_that_torch_counts(style: str) -> None:
    model = PretrainingModel(small_model(style))
    with FlopCounterMode(display=False) as counter:
        loss_sum, _, _ = model(batch_of([[64], [64]], 64, PREDICTED))
        loss_sum.backward()
    plan = make_plan(config_of(model.config, 64, micro=2, sequences=2, precision="fp32"))
    assert plan.flops_per_step == pytest.approx(counter.get_total_flops())


@pytest.mark.usefixtures("reference_attention")
@pytest.mark.parametrize("size", ["v3-xsmall", "v3-base"])
def test_flops_of_released_sizes_are_those_that_torch_counts(size: str) -> None:
    """Without values, so that nothing is computed; a seed of dropout is one."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        model = PretrainingModel(SIZES[size].model_copy(update=dict.fromkeys(STYLES["dropout"], 0.0)))
        loss_sum, _, _ = model(batch_of([[512]], 512, [list(range(0, 512, 4))]))
        loss_sum.backward()
    plan = make_plan(config_of(model.config, 512, micro=1, sequences=1, precision="fp32"))
    assert plan.flops_per_step == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.usefixtures("reference_attention")
@pytest.mark.parametrize("style", ["v3", "baseline"])
def test_checkpointing_costs_one_more_forward_pass(style: str) -> None:
    """Of the layers; the head, which is not recomputed, is small here."""
    model = PretrainingModel(small_model(style), checkpoint_activations=True)
    with FlopCounterMode(display=False) as counter:
        loss_sum, _, _ = model(batch_of([[64], [64]], 64, PREDICTED))
        loss_sum.backward()
    plan = make_plan(config_of(model.config, 64, micro=2, sequences=2, precision="fp32"))
    assert counter.get_total_flops() / plan.flops_per_step == pytest.approx(RECOMPUTATION, rel=0.02)


def test_checkpointing_keeps_one_state_a_layer() -> None:
    config = config_of(SIZES["v3-base"], precision="bf16", activation_checkpointing="non_reentrant")
    deeper = config_of(SIZES["v3-base"].model_copy(update={"num_hidden_layers": 13}), precision="bf16")
    kept, recomputed = activation_bytes(config, checkpointing=True)
    kept_deeper, recomputed_deeper = activation_bytes(deeper, checkpointing=True)
    assert kept_deeper - kept == 512 * 768 * 2
    assert recomputed == recomputed_deeper > 0


def test_time_follows_from_the_given_rate() -> None:
    config = config_of(SIZES["v3-base"])
    assumed, given = make_plan(config, 2), make_plan(config, 2, Hardware(tflops_per_rank=10.0))
    assert assumed.tflops_assumed and not given.tflops_assumed
    assert given.days == pytest.approx(given.flops / (2 * 10e12) / 86400)


def write_manifest(directory: Path, content: str) -> None:
    (directory / "train").mkdir(parents=True)
    (directory / "train" / "manifest.json").write_text(content)


def with_manifest(directory: Path, content: str) -> Config:
    write_manifest(directory, content)
    config = config_of(small_model_config(), 64)
    return config.model_copy(update={"data": config.data.model_copy(update={"shards": directory})})


def test_epochs_are_counted_over_the_shards(tmp_path: Path) -> None:
    config = with_manifest(tmp_path, '{"tokens": 10240, "vocabulary_size": 90}')
    (source,) = make_plan(config).sources
    assert (source.tokens, source.share, source.epochs) == (10240, 1.0, 10 * 64 * 64 / 10240)


@pytest.fixture
def mixture_words(tmp_path: Path) -> list[str]:
    """Words for tiny.yaml: 10 steps of 2 rows of 128 places; `late` is all that is read in the second half."""
    for name, tokens in [("early", 500), ("late", 10_000)]:
        write_manifest(tmp_path / name, json.dumps({"tokens": tokens, "vocabulary_size": 90}))
    sources = {name: {"shards": str(tmp_path / name), "weight": 1, "max_epochs": 1.2} for name in ("early", "late")}
    mixture = {"sources": sources, "phases": [{"from_step": 5, "weights": {"early": 0, "late": 1}}]}
    sizes = ["train.steps=10", "schedule.warmup_steps=1", "batch.sequences=2", "batch.micro_sequences=2"]
    return ["configs/pretrain/tiny.yaml", "data.shards=null", f"data.mixture={json.dumps(mixture)}", *sizes]


def test_epochs_of_a_mixture_are_those_of_the_planned_steps_by_source(mixture_words: list[str]) -> None:
    read = json.loads(plan_command(*mixture_words, "--json").stdout)
    early, late = read["sources"]
    assert (early["share"], late["share"]) == (0.25, 0.75)
    assert (early["epochs"], late["epochs"]) == (0.25 * 2560 / 500, 0.75 * 2560 / 10_000)
    (warning,) = read["warnings"]
    assert "sources.early: 1.28 epochs are more than its max_epochs 1.2" in warning
    shown = plan_command(*mixture_words).stdout
    assert f"warning: {warning}" in shown and "epochs of late" in shown
    assert "warning" not in plan_command(*mixture_words, "data.mixture.sources.early.max_epochs=1.3").stdout


def test_shards_that_do_not_exist_yet_are_named_in_one_line(mixture_words: list[str], tmp_path: Path) -> None:
    (tmp_path / "early").rename(tmp_path / "elsewhere")
    lines = [line for line in plan_command(*mixture_words).stdout.splitlines() if line.startswith("  epochs")]
    assert len(lines) == 2 and "epochs of late" in lines[0]
    assert lines[1].split("unknown")[1].strip() == f"{tmp_path / 'early'} does not exist yet"
    (tmp_path / "late").rename(tmp_path / "elsewhere too")
    lines = [line for line in plan_command(*mixture_words).stdout.splitlines() if line.startswith("  epochs")]
    assert len(lines) == 1 and f"{tmp_path / 'early'}, {tmp_path / 'late'} do not exist yet" in lines[0]


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ('{"tokens": 10, "vocabulary_size": 91}', "model.vocab_size 90 is too small .* give 91 or more"),
        ('{"tokens": 0, "vocabulary_size": 90}', "holds no tokens"),
        ('{"tokens": 10}', "manifest.json: not a manifest of data_prep/tokenize_corpus.py"),
        ("{", "manifest.json: not a manifest"),
    ],
)
def test_unusable_shards_are_errors(tmp_path: Path, manifest: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_plan(with_manifest(tmp_path, manifest))


def test_a_directory_without_a_manifest_is_an_error(tmp_path: Path) -> None:
    config = with_manifest(tmp_path, "")
    (tmp_path / "train" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"manifest.json cannot be read .* give a directory written by"):
        make_plan(config)


def test_the_command_prints_the_plan_and_the_next_command() -> None:
    done = plan_command(XXLARGE, "--world-size", "8", "train.steps=20000")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1567.8M" in done.stdout
    assert "ASSUMPTION" in done.stdout
    last_line = done.stdout.splitlines()[-1]
    assert last_line == f"next: deepspeed --num_gpus 8 launch/pretrain.py {XXLARGE} train.steps=20000"


def test_the_command_speaks_json() -> None:
    done = plan_command(XXLARGE, "--world-size", "256", "--tflops-per-rank", "40", "--json")
    content = json.loads(done.stdout)
    assert content["parameters"]["total"] == 1_567_828_068
    assert content["accumulation_steps"] == 1
    assert content["tflops_assumed"] is False
    assert content["memory"]["device_peak"] < 16e9


def test_json_has_the_numbers_of_the_text() -> None:
    words = [XXLARGE, "--machine", "a100-80", "--nodes", "4"]
    content, text = json.loads(plan_command(*words, "--json").stdout), plan_command(*words).stdout
    machine, memory, communication = content["machine"], content["memory"], content["communication"]
    shown = {
        "token places a second": f"{content['tokens_per_second']:,.0f}",
        "save about every": f"{content['steps_between_saves']:,} steps",
        "FLOPs of the run": f"{content['flops']:.3e}",
        "peak on the device": in_bytes(memory["device_peak"]),
        "peak on the host": in_bytes(memory["host_peak"]),
        "in all": in_bytes(communication["total"]),
        "without position and head": f"{content['parameters']['released'] / 1e6:.1f}M",
        "a step": f"{content['step_seconds']:,.2f} s",
        "computing a step": f"{machine['model']['compute_seconds']:,.2f} s",
        "needed on a GPU": in_bytes(machine["device_needed"]),
        "time": duration(content["days"]),
    }
    for name, value in shown.items():
        assert re.search(rf"^  {name} +{re.escape(value)}(  |$)", text, re.MULTILINE), (name, value, text)
    assert f"within {content['buffers']['live'] / 1e9:,.1f}B others" in text
    assert f"{content['predicted_in_micro_batch']:,} predicted tokens" in text
    assert f"{in_bytes(machine['device_usable'])} of it can be used" in text
    assert f"the config says {content['save_every_steps']:,}" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("none.yaml",), "error: none.yaml: cannot be read"),
        ((XXLARGE, "model.hiden_size=3"), "did you mean 'model.hidden_size'?"),
        ((XXLARGE, "--world-size", "96"), "batch.micro_sequences 8 x 96 ranks = 768"),
        ((XXLARGE, "--world-size", "0"), "error: --world-size 0: a run has at least 1 rank"),
        ((XXLARGE, "--tflops-per-rank", "-1"), "error: --tflops-per-rank -1.0: give a positive rate"),
    ],
)
def test_a_wrong_config_is_one_error(arguments: tuple[str, ...], expected: str) -> None:
    done = plan_command(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and expected in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_planning_needs_no_torch() -> None:
    program = (
        "import runpy, sys; sys.argv = ['launch/plan.py', 'configs/pretrain/xxlarge_1_5b.yaml']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
