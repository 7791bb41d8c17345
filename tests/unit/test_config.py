"""The config says what is wrong, where, and what would work."""

import subprocess
import sys
from pathlib import Path

import pytest

from deberta_scale.config import Config, ConfigError
from deberta_scale.config_file import load, read_tree

MINIMAL = """
run_dir: runs/x
model: {vocab_size: 4096, hidden_size: 64, num_attention_heads: 2, num_hidden_layers: 2, intermediate_size: 128}
data: {shards: shards, sequence_length: 64}
batch: {sequences: 16, micro_sequences: 4}
optimizer: {learning_rate: 5e-4}
train: {steps: 100}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, list(overrides))
    return str(caught.value)


def test_scientific_notation_and_no_mean_what_a_person_expects(minimal: Path) -> None:
    config = load(minimal, ["model.baseline=no"])
    assert config.optimizer.learning_rate == 0.0005
    assert config.model.baseline is False


def test_unknown_key_names_the_file_the_key_and_the_nearest_known_one(minimal: Path) -> None:
    message = message_of(minimal, "model.hiden_size=3")
    assert str(minimal) in message
    assert "model.hiden_size: unknown key; did you mean 'model.hidden_size'?" in message


def test_a_mistyped_key_inside_of_a_list_has_its_nearest_one_too(minimal: Path) -> None:
    mixture = "{sources: {a: {shards: x, wieght: 1, max_epochs: 1}}, phases: [{from_stp: 5, weights: {a: 1}}]}"
    message = message_of(minimal, "data.shards=null", f"data.mixture={mixture}")
    assert "data.mixture.sources.a.wieght: unknown key; did you mean 'data.mixture.sources.a.weight'?" in message
    assert "data.mixture.phases.0.from_stp: unknown key; did you mean 'data.mixture.phases.0.from_step'?" in message


def test_a_directory_may_be_named_by_a_date(minimal: Path) -> None:
    assert load(minimal, ["run_dir=2026-05-01"]).run_dir == Path("2026-05-01")
    minimal.write_text(MINIMAL.replace("runs/x", "2026-05-01"))
    assert load(minimal).run_dir == Path("2026-05-01")


def test_checkpoints_to_keep_for_good_are_ones_that_are_saved(minimal: Path) -> None:
    message = message_of(minimal, "train.save_every_steps=20", "train.keep_every_steps=50")
    assert "keep_every_steps 50 is not a multiple of save_every_steps 20" in message
    assert load(minimal, ["train.save_every_steps=20", "train.keep_every_steps=60"]).train.keep_every_steps == 60


def test_all_problems_are_reported_at_once(minimal: Path) -> None:
    message = message_of(minimal, "train.steps=-1", "optimizer.betas=[0.9]", "engine.zero_stage=4")
    assert "3 problem(s)" in message
    assert "train.steps" in message and "(given: -1)" in message
    assert "optimizer.betas.1: required" in message
    assert "engine.zero_stage" in message


@pytest.mark.parametrize("mode", ["reentrant", "deepspeed"])
def test_checkpointing_modes_that_break_on_a_layer_used_twice_are_refused(minimal: Path, mode: str) -> None:
    assert "non_reentrant" in message_of(minimal, f"engine.activation_checkpointing={mode}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("schedule.decay_steps=10", "would have no effect with schedule linear"),
        ("schedule.name=wsd", "needs decay_steps"),
        ("model.hidden_size=65", "not a multiple of num_attention_heads 2"),
        ("data.sequence_length=600", "max_position_embeddings 512"),
        ("schedule.warmup_steps=101", "train.steps is 100"),
        ("engine={zero_stage: 2, offload_parameters: cpu}", "needs zero_stage 3"),
        ("engine={zero_stage: 0, precision: bf16}", "use zero_stage 1"),
        ("model={vocab_size: 9, baseline: true, position_buckets: 8}", "position_buckets would have no effect"),
    ],
)
def test_contradictions_are_errors(minimal: Path, override: str, expected: str) -> None:
    assert expected in message_of(minimal, override)


@pytest.mark.parametrize("override", ["steps", "=3", "train..steps=3", "train.steps.deeper=3"])
def test_malformed_overrides_are_errors(minimal: Path, override: str) -> None:
    assert "override" in message_of(minimal, override)


def test_missing_and_broken_files_are_errors(tmp_path: Path) -> None:
    assert "cannot be read" in message_of(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    assert "not valid YAML" in message_of(broken)
    broken.write_text("just text")
    assert "expected keys such as run_dir: and model: and batch:" in message_of(broken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {steps: 1, steps: 2}", "'steps' is given twice"),
        ("train: {steps: " + "9" * 5000 + "}", "not valid YAML: Exceeds the limit"),
        ("[" * 10_000, "not valid YAML: nested too deeply"),
        ("model: " + "[" * 10_000, "not valid YAML: nested too deeply"),
    ],
    ids=["twice", "digits", "nested", "nested below a key"],
)
def test_what_yaml_reads_wrongly_or_not_at_all_is_said_for_files_and_overrides(
    minimal: Path, text: str, expected: str
) -> None:
    assert f"override 'train={text}': " in (message := message_of(minimal, f"train={text}")) and expected in message
    minimal.write_text(text)
    assert (message := message_of(minimal)).startswith(f"{minimal}: ") and expected in message


@pytest.mark.parametrize("key", ["x", "longer_key"])
def test_of_merged_keys_the_nearest_one_counts(tmp_path: Path, key: str) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        f"a: &a {{{key}: 1, y: 1}}\nb: {{inner: &b {{<<: *a, {key}: 3}}}}\n"
        "again: {<<: *b}\nboth: {<<: [*a, *b]}\nother: {<<: [*b, *a]}\n"
    )
    tree = read_tree(path, Config)
    assert tree["b"]["inner"] == tree["again"] == tree["other"] == {key: 3, "y": 1}
    assert tree["both"] == {key: 1, "y": 1}


def test_batch_that_does_not_divide_names_the_numbers_that_would(minimal: Path) -> None:
    batch = load(minimal).batch
    assert batch.accumulation_steps(world_size=2) == 2
    with pytest.raises(ConfigError, match=r"16 is not a multiple of .* 4 x 3 ranks = 12; .* multiple of the 3 ranks"):
        batch.accumulation_steps(world_size=3)
    with pytest.raises(ConfigError, match=r"that fit: 1, 2$"):
        batch.accumulation_steps(world_size=8)


def test_resolved_config_reads_back_equal(minimal: Path, tmp_path: Path) -> None:
    config = load(minimal, ["schedule.warmup_steps=7", "data.masking.max_span_words=1"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(config.to_yaml())
    assert load(resolved) == config


def test_config_cannot_be_changed_after_reading(minimal: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(minimal).train.steps = 3  # type: ignore[misc]


def test_validation_needs_no_torch(minimal: Path) -> None:
    program = f"import sys, deberta_scale.config_file as c; c.load({str(minimal)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
