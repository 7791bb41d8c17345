"""Sources are mixed exactly, in every block, over time and over phases; whoever reads which sample does not matter."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_scale.config import Config, ConfigError, DataConfig, MixtureConfig
from deberta_scale.config_file import load
from deberta_scale.data.loader import DIGEST_MODULUS, MaskedLoader
from deberta_scale.data.mixture import BLOCK, Mixture
from deberta_scale.data.shards import ShardError
from deberta_scale.train.state import TrainState, trajectory_of

SEQUENCES = 24
LENGTH = 64


def mixture_of(weights: dict[str, float], phases: list[dict[str, Any]] | None = None) -> MixtureConfig:
    sources = {name: {"shards": name, "weight": weight, "max_epochs": 1} for name, weight in weights.items()}
    return MixtureConfig.model_validate({"sources": sources, "phases": phases or []})


weight_lists = st.lists(st.one_of(st.integers(1, 50), st.floats(0.001, 1.0)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(weights=weight_lists, seed=st.integers(0, 2**63 - 1))
def test_each_block_holds_each_source_as_often_as_its_weight_says_rounded(weights: list[float], seed: int) -> None:
    names = [str(number) for number in range(len(weights))]
    mixture = Mixture(mixture_of(dict(zip(names, weights, strict=True))), 1, seed)
    sources, numbers = mixture.locate(np.arange(30 * BLOCK))
    exact = np.array(weights) / sum(weights) * BLOCK
    counts = np.array([np.bincount(block, minlength=len(weights)) for block in sources.reshape(-1, BLOCK)])
    assert (counts >= np.floor(exact - 1e-3)).all() and (counts <= np.ceil(exact + 1e-3)).all()
    far_from_exact = np.abs(counts.cumsum(axis=0) - exact * np.arange(1, 31)[:, np.newaxis])
    assert far_from_exact.max() < 4.0, "roundings must not add up"  # twice the star discrepancy of 30 golden steps
    for source in range(len(weights)):
        assert sorted(numbers[sources == source]) == list(range(counts[:, source].sum())), "each sample once"


def test_shares_are_exact_after_a_period() -> None:
    mixture = Mixture(mixture_of({"a": 0.1, "b": 0.7, "c": 0.2}), 1, 1)
    assert mixture.read_before(5 * BLOCK).tolist() == [512, 3584, 1024]
    assert mixture.read_before(10**6 * BLOCK).tolist() == [102_400_000, 716_800_000, 204_800_000]


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(1, 700), min_size=1, max_size=3, unique=True).map(sorted),
    data=st.data(),
    sequences=st.integers(1, 9),
)
def test_phases_begin_at_their_step_and_skip_and_repeat_nothing(
    steps: list[int], data: st.DataObject, sequences: int
) -> None:
    weights = [
        data.draw(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any)) for _ in range(len(steps) + 1)
    ]
    if not all(map(any, zip(*weights, strict=True))):
        weights[0] = [1, 1, 1]
    named = [dict(zip("abc", of_phase, strict=True)) for of_phase in weights]
    phases = [{"from_step": step, "weights": w} for step, w in zip(steps, named[1:], strict=True)]
    mixture = Mixture(mixture_of(named[0], phases), sequences, 3)
    end = steps[-1] * sequences + 3 * BLOCK
    sources, numbers = mixture.locate(np.arange(end))
    for source in range(3):
        of_source = numbers[sources == source]
        assert sorted(of_source) == list(range(len(of_source)))
    for first, after, of_phase in zip([0, *steps], [*steps, end // sequences], weights, strict=True):
        counts = np.bincount(sources[first * sequences : after * sequences], minlength=3)
        exact = np.array(of_phase) / sum(of_phase) * (after - first) * sequences
        assert np.abs(counts - exact).max() < 3.5
        assert (counts[np.array(of_phase) == 0] == 0).all()
    for sample in (0, steps[0] * sequences, end // 2, end):
        assert mixture.read_before(sample).tolist() == np.bincount(sources[:sample], minlength=3).tolist()


def test_sources_are_spread_inside_a_block_and_seeds_give_other_orders() -> None:
    first, second = (Mixture(mixture_of({"a": 1, "b": 1}), 1, seed).locate(np.arange(BLOCK))[0] for seed in (1, 2))
    assert 400 < np.count_nonzero(np.diff(first)) < 620, "about every second sample is of another source"
    assert (first != second).any()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sources": {}}, "at least 1 item"),
        ({"phases": [{"from_step": 5, "weights": {"a": 1}}]}, "weights a; the sources are a, b: give each one weight"),
        ({"phases": [{"from_step": 5, "weights": {"a": 0, "b": 0}}]}, "from step 5 on all weights are 0"),
        ({"phases": [{"from_step": s, "weights": {"a": 1, "b": 1}} for s in (9, 9)]}, "later from_step"),
    ],
)
def test_mixtures_that_make_no_sense_are_errors(change: dict[str, Any], expected: str) -> None:
    good = mixture_of({"a": 1, "b": 1}).model_dump()
    with pytest.raises(ValueError, match=expected):
        MixtureConfig.model_validate(good | change)
    with pytest.raises(ValueError, match="'c' has weight 0 from beginning to end"):
        mixture_of({"a": 1, "b": 1, "c": 0})
    with pytest.raises(ConfigError, match=r"source 'a' has the weight 1e-09, .* would never be read"):
        Mixture(mixture_of({"a": 1e-9, "b": 1}), 1, 1)


def test_one_of_shards_and_mixture_is_given() -> None:
    with pytest.raises(ValueError, match="give shards, one directory, or mixture"):
        DataConfig()
    with pytest.raises(ValueError, match="both shards and mixture are given; leave one out"):
        DataConfig(shards=Path("x"), mixture=mixture_of({"a": 1}))


@pytest.fixture(scope="module")
def config(prepared_shards: Path, small_config: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The validation split plays the training split of a second source, so that the two differ."""
    directory = tmp_path_factory.mktemp("mixture")
    shutil.copytree(prepared_shards / "tokenizer", directory / "second" / "tokenizer")
    for ours, theirs in (("train", "validation"), ("validation", "train")):
        shutil.copytree(prepared_shards / theirs, directory / "second" / ours)
    path = directory / "config.yaml"
    path.write_text(small_config)
    sources = {
        "first": {"shards": str(prepared_shards), "weight": 0.6, "max_epochs": 9},
        "second": {"shards": str(directory / "second"), "weight": 0.4, "max_epochs": 9},
    }
    phases = [{"from_step": 100, "weights": {"first": 0.1, "second": 0.9}}]
    mixture = json.dumps({"sources": sources, "phases": phases})
    return load(path, ["data.shards=null", f"data.mixture={mixture}", f"batch.sequences={SEQUENCES}"])


def open_mixture(config: Config, rank: int = 0, world_size: int = 1, micro: int = 4) -> MaskedLoader:
    return MaskedLoader(
        config.data.split_dirs("train"),
        config.data,
        seed=1,
        micro_sequences=micro,
        rank=rank,
        world_size=world_size,
        model_vocab_size=1000,
        sequences_per_step=SEQUENCES,
    )


def test_ranks_workers_and_restarts_share_out_the_same_mixed_samples(config: Config) -> None:
    """R2, R3."""
    whole = open_mixture(config, micro=SEQUENCES)
    expected = [whole.step(step * SEQUENCES, SEQUENCES).digest for step in range(97, 104)]
    assert len(set(expected)) == 7
    for world_size, micro in ((1, 3), (2, 4), (3, 8), (8, 1)):
        digests = np.zeros(7, dtype=object)
        for rank in range(world_size):
            loader = open_mixture(config, rank, world_size, micro)
            steps = loader.steps(97 * SEQUENCES, SEQUENCES)
            digests += [next(steps).digest for _ in range(7)]
            steps.close()
        assert (digests % DIGEST_MODULUS).tolist() == expected


CONFIG_FILE = """
run_dir: runs/unused
model: {{vocab_size: 1000, hidden_size: 48, num_attention_heads: 2, num_hidden_layers: 2, intermediate_size: 96}}
data:
  mixture:
    sources:
      web:
        shards: {web}
        weight: 3
        max_epochs: 4
      books:
        shards: {books}
        weight: 0             # not before step 2
        max_epochs: 0.02
    phases:
      - from_step: 2
        weights: {{web: 0, books: 1}}
      - from_step: 3
        weights: {{web: 1, books: 1}}
  sequence_length: 64
batch: {{sequences: 24, micro_sequences: 4}}
optimizer: {{learning_rate: 1e-3}}
schedule: {{warmup_steps: 1}}
train: {{steps: 5}}
"""


def true_rows(loader: MaskedLoader, step: int) -> set[tuple[int, ...]]:
    """What the rows of a step hold, without masks."""
    rows = set()
    for batch in loader.step(step * SEQUENCES, SEQUENCES).micro_batches:
        batch.token_ids.view(-1)[batch.predict_positions] = batch.predict_ids
        rows |= set(map(tuple, batch.token_ids.tolist()))
    return rows


def test_a_config_file_says_which_sources_which_steps_read_and_how_often(config: Config, tmp_path: Path) -> None:
    assert config.data.mixture is not None
    first, second = config.data.mixture.sources["first"].shards, config.data.mixture.sources["second"].shards
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG_FILE.format(web=first, books=second))
    loader = open_mixture(load(path))
    rows_of: dict[str, set[tuple[int, ...]]] = {}
    for name, shards in (("web", first), ("books", second)):
        alone = open_mixture(load(path, ["data.mixture=null", f"data.shards={shards}"]))
        rows_of[name] = set().union(*(true_rows(alone, step) for step in range(-(-len(alone) // SEQUENCES))))
    assert not rows_of["web"] & rows_of["books"]
    from_web = [len(true_rows(loader, step) & rows_of["web"]) for step in range(5)]
    from_books = [len(true_rows(loader, step) & rows_of["books"]) for step in range(5)]
    assert from_web[:3] == [24, 24, 0] and from_books[:3] == [0, 0, 24]
    assert 12 < sum(from_web[3:]) < 36 and sum(from_web[3:]) + sum(from_books[3:]) == 48

    read = loader.epochs_read(5 * SEQUENCES)
    num_rows = dict(zip(("books", "web"), loader._sources.num_rows.tolist(), strict=True))
    assert {name: round(epochs * num_rows[name]) for name, epochs in read.items()} == {
        "web": sum(from_web),
        "books": sum(from_books),
    }
    assert read["books"] > 0.02
    with pytest.raises(ConfigError, match=r"data\.mixture\.sources\.books: 5 steps .* its max_epochs is 0\.02;"):
        loader.check_repetition(5, SEQUENCES)
    path.write_text(path.read_text().replace("max_epochs: 0.02", "max_epochs: 4"))
    open_mixture(load(path)).check_repetition(5, SEQUENCES)


def test_the_order_in_which_sources_are_written_means_nothing(config: Config) -> None:
    tree = config.model_dump()
    sources = tree["data"]["mixture"]["sources"]
    tree["data"]["mixture"]["sources"] = dict(reversed(sources.items()))
    turned, loader = open_mixture(Config.model_validate(tree)), open_mixture(config)
    assert turned.fingerprint == loader.fingerprint
    assert turned.step(2400, SEQUENCES).digest == loader.step(2400, SEQUENCES).digest


def test_epochs_are_those_of_the_samples_that_were_read(config: Config) -> None:
    loader = open_mixture(config)
    read = loader.epochs_read(100 * SEQUENCES)
    counts = loader._mixture.read_before(100 * SEQUENCES)  # type: ignore[union-attr]
    rows = loader._sources.num_rows
    assert list(read.values()) == pytest.approx((counts / rows).tolist())
    assert counts.tolist() == pytest.approx([1440, 960], abs=2)
    loader.check_repetition(100, SEQUENCES)


def test_a_source_that_would_be_read_too_often_is_an_error_with_what_would_work(config: Config) -> None:
    loader = open_mixture(config)
    with pytest.raises(
        ConfigError, match=r"data\.mixture\.sources\.second: .* max_epochs is 9; .* train\.steps"
    ) as caught:
        loader.check_repetition(10_000, SEQUENCES)
    steps = int(str(caught.value).split("train.steps ")[1].split(", or")[0].replace(",", ""))
    loader.check_repetition(steps, SEQUENCES)
    with pytest.raises(ConfigError, match="max_epochs"):
        loader.check_repetition(steps + 1, SEQUENCES)


def test_held_out_rows_come_from_each_source_in_proportion(config: Config) -> None:
    loader = open_mixture(config)
    parts = loader.evaluation_parts(40, {"first": 0.75, "second": 0.25})
    rows = {p.source: sum(int((batch.token_ids[:, 0] != 0).sum()) for batch in p.batches) for p in parts}
    assert rows == {"first": 30, "second": 10}
    assert config.data.mixture is not None
    assert config.data.mixture.share_of_run(200) == pytest.approx({"first": 0.35, "second": 0.65})


def test_sources_of_different_tokenizers_are_refused_by_name(config: Config, tmp_path: Path) -> None:
    assert config.data.mixture is not None
    copy = tmp_path / "copy"
    shutil.copytree(config.data.mixture.sources["second"].shards, copy)
    path = copy / "train" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_sha256": "0" * 64}))
    split_dirs = config.data.split_dirs("train")
    assert isinstance(split_dirs, dict)
    with pytest.raises(ShardError, match=r"copy/train was made with another tokenizer .* than .*train .*--tokenizer"):
        MaskedLoader(
            split_dirs | {"second": copy / "train"},
            config.data,
            seed=1,
            micro_sequences=1,
            rank=0,
            world_size=1,
            model_vocab_size=1000,
        )


def test_a_resumed_run_must_have_the_same_sources_weights_and_phases(config: Config) -> None:
    """R6."""
    loader = open_mixture(config)
    state = TrainState(5, loader.fingerprint, trajectory_of(config), loader.source_fingerprints)
    state.check_continues(config, loader.fingerprint, loader.source_fingerprints)

    tree = config.model_dump()
    tree["data"]["mixture"]["sources"]["first"] |= {"weight": 0.5, "max_epochs": 20}
    tree["data"]["mixture"]["phases"] = []
    with pytest.raises(ConfigError) as caught:
        state.check_continues(Config.model_validate(tree), "other", loader.source_fingerprints)
    message = str(caught.value)
    assert "data.mixture.sources.first.weight: the checkpoint has 0.6, the config 0.5" in message
    assert "data.mixture.phases.from_step 100: the checkpoint has" in message and "the config None" in message
    assert "max_epochs" not in message

    other = loader.source_fingerprints | {"second": "f" * 64}
    with pytest.raises(ConfigError, match=r"data\.mixture\.sources\.second\.shards: .* has ffffffffffffffff"):
        state.check_continues(config, "other", other)
