"""Samples stay what they were, or the version in the trajectory says that they do not."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deberta_scale.config import Config, ConfigError, DataConfig
from deberta_scale.config_file import load
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.data.shards import ShardWriter, write_manifest
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.data.tokenizer_byte_pair import BYTE_SIGNS
from deberta_scale.train.state import SAMPLES_VERSION, TrainState, trajectory_of
from tests.vocabularies import UNMADE, Vocabulary, write_vocabulary_and_merges

NUM_DOCUMENTS = 300
NUM_SAMPLES = 1200
"""More than an epoch."""
DIGESTS = {
    ("best_fit", "none"): "3daf1cf6d8c63e20",
    ("concat", "none"): "71602621364b853d",
    ("doc", "none"): "3ac63d1cbe789cbd",
    ("best_fit", "official"): "d196696dd60527f2",
    ("mixture", "none"): "149906091d5dda17",
}
"""Of the samples of samples_version 2, in their order."""


def write_shards(directory: Path, first_document: int) -> Path:
    """Documents of bytes that only this file decides: no text, no trained tokenizer."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(BYTE_SIGNS), *UNMADE, "[MASK]"]
    vocabulary = Vocabulary({}, [], {piece: number for number, piece in enumerate(pieces)})
    directory.mkdir()
    tokenizer = Tokenizer.load(write_vocabulary_and_merges(vocabulary, directory / "tokenizer"))
    (directory / "train").mkdir()
    writer = ShardWriter(directory / "train" / "00000", tokenizer.vocabulary_size, tokenizer.unk_id)
    for document in range(first_document, first_document + NUM_DOCUMENTS):
        places = np.arange(1, 2 + document * 37 % 150)
        writer.add([4 + (places * document * 7919 + places**2 * 104729) % len(BYTE_SIGNS)])
    entry = {"name": "00000", "source": {}, **writer.finish()}
    write_manifest(directory / "train", tokenizer.describe(), [entry], writer.token_counts)
    return directory


def config_of(tmp_path: Path, packing: str, compat: str) -> DataConfig:
    first, second = write_shards(tmp_path / "first", 0), write_shards(tmp_path / "second", 500)
    data: dict[str, Any] = {"sequence_length": 64, "masking": {"compat": compat}}
    if packing == "mixture":
        sources = {
            name: {"shards": d, "weight": w, "max_epochs": 9} for name, d, w in [("a", first, 1), ("b", second, 2)]
        }
        phases = [{"from_step": 70, "weights": {"a": 1, "b": 1}}]
        return DataConfig.model_validate(data | {"mixture": {"sources": sources, "phases": phases}})
    return DataConfig.model_validate(data | {"shards": first, "packing": packing})


@pytest.mark.parametrize(("packing", "compat"), DIGESTS)
def test_samples_are_those_of_this_version(tmp_path: Path, packing: str, compat: str) -> None:
    config = config_of(tmp_path, packing, compat)
    loader = MaskedLoader(
        config.split_dirs("train"),
        config,
        seed=5,
        micro_sequences=8,
        rank=0,
        world_size=1,
        model_vocab_size=1000,
        sequences_per_step=8,
    )
    assert len(loader) < NUM_SAMPLES
    digests = repr([loader.sample(number).digest for number in range(NUM_SAMPLES)])
    found = hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()
    assert (SAMPLES_VERSION, found) == (2, DIGESTS[packing, compat]), (
        "a sample is another one than before: raise SAMPLES_VERSION, and take these digests for the new version"
    )


@pytest.fixture
def config(small_config: str, tmp_path: Path) -> Config:
    (tmp_path / "config.yaml").write_text(small_config)
    return load(tmp_path / "config.yaml")


def test_a_checkpoint_of_other_samples_is_refused_and_what_would_work_is_said(config: Config) -> None:
    trajectory = trajectory_of(config)
    TrainState(5, "f", trajectory).check_continues(config, "f")
    expected = r"step 5 was made with another way to pack, order and mask \(samples_version {}, here 2\).*init_from"
    with pytest.raises(ConfigError, match=expected.format(3)):
        TrainState(5, "f", trajectory | {"samples_version": 3}).check_continues(config, "f")
    del trajectory["samples_version"]
    with pytest.raises(ConfigError, match=expected.format(1)):
        TrainState(5, "f", trajectory).check_continues(config, "f")


def test_a_checkpoint_of_another_shard_set_is_refused(config: Config) -> None:
    """R6: both fingerprints and the key are named."""
    saved, found = "a" * 64, "b" * 64
    state = TrainState(5, saved, trajectory_of(config))
    with pytest.raises(
        ConfigError, match=rf"data.shards: .* fingerprint {saved[:16]}, {config.data.shards} has {found[:16]}"
    ):
        state.check_continues(config, found)
