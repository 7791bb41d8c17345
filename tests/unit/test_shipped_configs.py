"""Every shipped config loads, divides over the ranks it is written for, and says what to expect of it."""

import re
from pathlib import Path

import pytest

from deberta_scale.config import Config
from deberta_scale.config_file import load
from deberta_scale.model.sizes import SIZES, parameter_count
from deberta_scale.plan import make_plan

FOLDER = Path(__file__).parent.parent.parent / "configs" / "pretrain"
SHIPPED = sorted(FOLDER.glob("*.yaml"))
ITEMS = ["command", "hardware", "time", "expected loss"]
NAME = {"ids": lambda path: path.stem}


def shipped(name: str) -> Config:
    return load(FOLDER / f"{name}.yaml")


def stated_ranks(path: Path) -> int:
    """The number of ranks that a config's comment states; the quickstart's from its command."""
    found = re.search(r"^# hardware: (\d+) ranks?\b", path.read_text(), re.MULTILINE)
    found = found or re.search(r"^# .*--num_gpus (\d+)", path.read_text(), re.MULTILINE)
    assert found, f"{path} does not state its number of ranks"
    return int(found[1])


def test_the_configs_of_the_readme_are_shipped() -> None:
    expected = {"base", "large", "mixture_example", "quickstart", "tiny", "v3_base", "xlarge_900m", "xxlarge_1_5b"}
    expected.add("xxlarge_1_5b_one_box")
    assert expected <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, **NAME)
def test_it_loads_divides_and_can_be_planned(path: Path) -> None:
    config = load(path)
    plan = make_plan(config, stated_ranks(path))
    per_pass = config.batch.micro_sequences * plan.world_size
    assert plan.accumulation_steps * per_pass == config.batch.sequences
    assert plan.flops > 0


@pytest.mark.parametrize("path", SHIPPED, **NAME)
def test_its_comment_starts_with_command_hardware_time_and_expected_loss(path: Path) -> None:
    first_lines = path.read_text().splitlines()[: len(ITEMS)]
    assert [line.removeprefix("# ").partition(": ")[0] for line in first_lines] == ITEMS
    assert f"launch/pretrain.py configs/pretrain/{path.name}" in first_lines[0]


@pytest.mark.parametrize("path", SHIPPED, **NAME)
def test_it_writes_to_a_run_directory_of_its_name_and_reads_shards(path: Path) -> None:
    config = load(path)
    shards = Path("runs/quickstart-data/shards" if path.stem == "quickstart" else "shards")
    assert config.run_dir == Path("runs") / path.stem
    if config.data.mixture is None:
        assert config.data.shards == shards
    else:
        assert all(source.shards == shards / name for name, source in config.data.mixture.sources.items())


@pytest.mark.parametrize("path", SHIPPED, **NAME)
def test_a_rank_of_the_stated_hardware_has_the_memory(path: Path) -> None:
    """With room left for fragmentation, which the plan does not know."""
    stated = re.search(r"^# hardware:.*?(\d+) GB", path.read_text(), re.MULTILINE)
    assert stated
    memory = make_plan(load(path), stated_ranks(path)).memory
    assert memory.device_peak < 0.9 * int(stated[1]) * 1e9


def test_one_box_holds_in_its_memory_what_is_not_on_disk() -> None:
    memory = make_plan(shipped("xxlarge_1_5b_one_box"), 1).memory
    assert memory.device_peak + memory.host < 0.5 * 24e9, "on a CPU they are one memory"


@pytest.mark.parametrize(
    ("config_name", "size_name"),
    [
        ("v3_base", "v3-base"),
        ("xlarge_900m", "v2-xlarge"),
        ("xxlarge_1_5b", "v2-xxlarge"),
        ("xxlarge_1_5b_one_box", "v2-xxlarge"),
    ],
)
def test_the_named_sizes_are_the_released_ones(config_name: str, size_name: str) -> None:
    assert shipped(config_name).model == SIZES[size_name]


@pytest.mark.parametrize(("config_name", "size_name"), [("base", "v3-base"), ("large", "v3-large")])
def test_base_and_large_have_v1_shapes_with_the_later_attention(config_name: str, size_name: str) -> None:
    """Which is what V3 is, too."""
    assert parameter_count(shipped(config_name).model) == parameter_count(SIZES[size_name])


@pytest.mark.parametrize(
    ("config_name", "learning_rate", "sequences", "steps", "second_beta"),
    [
        ("base", 2e-4, 2048, 1_000_000, 0.999),
        ("large", 2e-4, 2048, 1_000_000, 0.999),
        ("xxlarge_1_5b", 1.5e-4, 2048, 1_000_000, 0.999),
        ("v3_base", 5e-4, 8192, 500_000, 0.98),
    ],
)
def test_recipes_are_those_of_the_papers(
    config_name: str, learning_rate: float, sequences: int, steps: int, second_beta: float
) -> None:
    config = shipped(config_name)
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.learning_rate, config.batch.sequences, config.train.steps) == (learning_rate, sequences, steps)
    assert (optimizer.betas, optimizer.eps) == ((0.9, second_beta), 1e-6)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.01, 1.0)
    assert (schedule.name, schedule.warmup_steps, schedule.final_fraction) == ("linear", 10_000, 0.0)
    assert (config.model.hidden_dropout_prob, config.model.attention_probs_dropout_prob) == (0.1, 0.1)


def test_tiny_takes_the_tokenizer_of_the_readme() -> None:
    assert shipped("tiny").model.vocab_size >= 32000 + 1
