"""Beginning with another model's weights: what is taken, what is said, what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deberta_scale.config import ConfigError, ModelConfig
from deberta_scale.convert.source import Source, Weights
from deberta_scale.model.initial import InitialWeights
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.train.initial_weights import InitialModel, taken_weights
from tests.rows import small_model_config

HEAD = "lm_predictions.lm_head.dense.weight"
TABLE = "deberta.embeddings.position_embeddings.weight"
WORDS = "deberta.embeddings.word_embeddings.weight"


def source(tokenizer: Path | None, without: tuple[str, ...] = (), **changes: Any) -> Source:
    torch.manual_seed(7)
    config = small_model_config(**changes)
    tensors = {k: v for k, v in PretrainingModel(config).state_dict().items() if k not in without}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    weights = Weights(shapes, lambda name: tensors[name].clone())
    return Source(Path("released"), "official checkpoint", config, weights, tokenizer, ("a note of the source",))


def fresh(**changes: Any) -> PretrainingModel:
    torch.manual_seed(8)
    return PretrainingModel(small_model_config(**changes))


def take_weights(model: PretrainingModel, initial: InitialModel, tokenizer: Path) -> list[str]:
    """Begin with `initial`, in pieces as two ranks would ask for them; returns the notes."""
    drawn = InitialWeights(model, model.config.initializer_range, seed=8)
    weights, notes = taken_weights(model, drawn, initial, tokenizer)
    for name, tensor in model.state_dict().items():
        half = tensor.numel() // 2 + 1
        pieces = [weights(name, 0, half), weights(name, half, tensor.numel() - half)]
        tensor.view(-1).copy_(torch.cat(pieces))
    return notes


@pytest.fixture
def tokenizer(prepared_shards: Path) -> Path:
    return prepared_shards / "tokenizer"


def test_every_tensor_is_taken_and_the_notes_are_passed_on(tokenizer: Path) -> None:
    model, given = fresh(), source(tokenizer)
    notes = take_weights(model, given, tokenizer)
    assert all(torch.equal(tensor, given.weights.read(name)) for name, tensor in model.state_dict().items())
    assert "a note of the source" in notes and not any("initialised" in note for note in notes)


def test_a_missing_position_table_and_head_stay_initialised_and_are_named(tokenizer: Path) -> None:
    model, before = fresh(), fresh().state_dict()
    notes = take_weights(model, source(tokenizer, without=(HEAD, TABLE)), tokenizer)
    for name in (HEAD, TABLE):
        assert torch.equal(model.state_dict()[name], before[name])
        assert any(note.startswith(f"{name}: not in released, initialised") for note in notes)
    assert not torch.equal(model.state_dict()[WORDS], before[WORDS])


def test_a_larger_vocabulary_and_longer_rows_keep_fresh_rows_at_the_end(tokenizer: Path) -> None:
    model, before = fresh(vocab_size=100, max_position_embeddings=80), fresh(vocab_size=100, max_position_embeddings=80)
    given = source(tokenizer)
    notes = take_weights(model, given, tokenizer)
    for name, old in ((WORDS, 90), (TABLE, 64)):
        table = model.state_dict()[name]
        assert torch.equal(table[:old], given.weights.read(name))
        assert torch.equal(table[old:], before.state_dict()[name][old:])
        assert any(note.startswith(f"{name}: rows {old} to {len(table) - 1} are new") for note in notes)


def test_dropout_may_differ(tokenizer: Path) -> None:
    take_weights(fresh(hidden_dropout_prob=0.3), source(tokenizer), tokenizer)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 4}, "model.num_hidden_layers: released has 3, the config 4"),
        ({"share_att_key": False}, "model.share_att_key: released has True, the config False"),
        ({"vocab_size": 80}, "model.vocab_size: released has 90, the config only 80"),
    ],
)
def test_another_shape_is_refused_by_key(tokenizer: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match="init_from holds a model of another shape") as caught:
        take_weights(fresh(**changes), source(tokenizer), tokenizer)
    assert expected in str(caught.value)


def test_equal_shapes_written_differently_are_one(tokenizer: Path) -> None:
    settings = small_model_config().model_dump() | {"embedding_size": 32, "attention_head_size": 16}
    settings["pos_att_type"] = ("c2p", "p2c")
    take_weights(PretrainingModel(ModelConfig(**settings)), source(tokenizer), tokenizer)


def test_data_made_with_another_tokenizer_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, other)
    (other / "spm.model").write_bytes(b"another")
    with pytest.raises(ConfigError, match=f"is not the tokenizer of released.*--tokenizer {other}"):
        take_weights(fresh(), source(other), tokenizer)


def test_a_source_without_tokenizer_is_taken_and_said(tokenizer: Path) -> None:
    assert any("holds no tokenizer" in note for note in take_weights(fresh(), source(None), tokenizer))
