"""Models that stock transformers made mean the same to us, and come back from its form as they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deberta_scale.convert import huggingface, native, official
from deberta_scale.convert.formats import open_source
from deberta_scale.convert.source import Source
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.model.pretraining import PretrainingModel
from tests.exporting import CONFIGS, random_model, source_of
from tests.foreign_models import V1_MODEL, assert_holds, in_v1_layout, without_key_biases
from tests.vocabularies import FORMS, train_byte_pairs

transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")

SHAPE: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "c2p|p2c",
}
V1, V2 = "deberta", "deberta-v2"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "V1": (V1, SHAPE),
    "V1, terms as a list": (V1, SHAPE | {"pos_att_type": ["c2p"]}),
    "V1, distances clamped": (V1, SHAPE | {"max_relative_positions": 24}),
    "V3": (V2, SHAPE | {"position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
    "V2-XLarge": (
        V2,
        SHAPE
        | {"position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p"}
        | {"conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 16},
    ),
    "V2, own projections": (V2, SHAPE | {"position_buckets": 16, "conv_kernel_size": 3}),  # conv_act: tanh by default
}


def stock_model(kind: str, **changes: Any) -> Any:
    """DebertaForMaskedLM or DebertaV2ForMaskedLM, with biases and LayerNorms that do something."""
    model_type, settings = KINDS[kind]
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(model_type, **settings | changes)
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def ours(source: Source) -> PretrainingModel:
    """The model that the source describes; what it lacks stays as initialised."""
    model = PretrainingModel(source.config)
    loaded = model.load_state_dict(dict(source.weights), strict=False)
    assert not loaded.unexpected_keys and tuple(loaded.missing_keys) == source.missing()
    return model.eval()


@torch.no_grad()
def assert_same_hidden_states(model: PretrainingModel, stock: Any) -> None:
    """Two rows of odd lengths, the shorter one padded. Also the logits of the head on these states, where there is
    one: transformers has no mask decoder before it."""
    length, short = 61, 37
    token_ids = torch.randint(4, 640, (2, length), generator=torch.Generator().manual_seed(2))
    segment_ids = torch.ones_like(token_ids)
    token_ids[1, short:], segment_ids[1, short:] = 0, 0
    hidden = model.deberta(token_ids, segment_ids, torch.arange(length).expand(2, -1)).hidden
    found = stock(input_ids=token_ids, attention_mask=segment_ids, output_hidden_states=True)
    is_token = segment_ids.bool()
    torch.testing.assert_close(hidden[is_token], found.hidden_states[-1][is_token], rtol=0, atol=1e-5)
    if hasattr(found, "logits"):
        words = model.deberta.embeddings.word_embeddings.weight
        logits = model.lm_predictions["lm_head"].logits(hidden, words)
        torch.testing.assert_close(logits[is_token], found.logits[is_token], rtol=0, atol=1e-4)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_stock_models_give_their_hidden_states_and_logits(tmp_path: Path, kind: str, legacy: bool) -> None:
    stock = stock_model(kind, legacy=legacy)
    stock.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert source.kind == "Hugging Face directory"
    assert source.missing() == ("deberta.embeddings.position_embeddings.weight",), "stock has no such table"
    assert_same_hidden_states(ours(source), stock)


@pytest.mark.parametrize("kind", ["V1", "V3"])
def test_a_whole_state_dict_repeats_what_is_tied(tmp_path: Path, kind: str) -> None:
    stock = stock_model(kind, legacy=True)
    stock.config.save_pretrained(tmp_path)
    state = stock.state_dict() | {"deberta.embeddings.position_ids": torch.arange(64)[None]}  # as old versions saved
    assert "cls.predictions.decoder.weight" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_hidden_states(ours(open_source(tmp_path)), stock)


@pytest.mark.parametrize("kind", ["V1", "V3"])
def test_a_stock_encoder_alone_is_saved_without_a_prefix(tmp_path: Path, kind: str) -> None:
    stock = stock_model(kind).deberta
    stock.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert any("no masked language modelling head" in note for note in source.notes)
    assert_same_hidden_states(ours(source), stock)


def test_a_stock_baseline(tmp_path: Path) -> None:
    changes = {"relative_attention": False, "position_biased_input": True, "pos_att_type": None, "legacy": True}
    stock = stock_model("V3", **changes)
    stock.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert source.config.baseline and source.missing() == ()
    assert_same_hidden_states(ours(source), stock)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    stock = stock_model("V1", legacy=False).to(dtype)
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    source = open_source(tmp_path)
    assert "read as float32" in source.notes[0]
    assert_same_hidden_states(ours(source), stock.float())


def test_a_fine_tuned_classifier_loses_its_head_only(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(V2, **KINDS["V3"][1], num_labels=3)
    stock = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    stock.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert [note.split(" ")[0] for note in source.notes[:2]] == ["classifier.*", "pooler.*"]
    assert_same_hidden_states(ours(source), stock.deberta)


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_to_hugging_face_to_ours_and_on(prepared_shards: Path, tmp_path: Path, name: str) -> None:
    """Through all forms in turn, bit for bit."""
    model = random_model(CONFIGS[name])
    huggingface.export(source_of(model, prepared_shards / "tokenizer"), tmp_path / "hub")
    native.export(open_source(tmp_path / "hub"), tmp_path / "native")
    official.export(open_source(tmp_path / "native"), tmp_path / "official")
    huggingface.export(open_source(tmp_path / "official"), tmp_path / "again")
    for form in ("hub", "native", "official", "again"):
        source = open_source(tmp_path / form)
        assert source.config == CONFIGS[name]
        assert_holds(source, dict(model.state_dict()))
    for path in (tmp_path / "hub").iterdir():
        if path.name != "README.md":  # says where it came from
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("form", FORMS)
def test_tokenizers_of_v1_go_along(sample_documents: list[str], tmp_path: Path, form: str) -> None:
    vocabulary = train_byte_pairs(sample_documents[:5], 400)
    given = Tokenizer.load(FORMS[form](vocabulary, tmp_path / "v1"))
    native.export(source_of(random_model(V1_MODEL), tmp_path / "v1"), tmp_path / "native")
    official.export(open_source(tmp_path / "native"), tmp_path / "official")
    for path in (tmp_path / "native" / "tokenizer", tmp_path / "official"):
        assert Tokenizer.load(path).describe() == given.describe()
    (tmp_path / "official" / "metadata.json").unlink()
    (tmp_path / "official" / "vocab.json").unlink()
    again = open_source(tmp_path / "official")
    assert again.tokenizer is not None
    assert Tokenizer.load(again.tokenizer).sha256 == given.sha256, "from bpe_encoder.bin alone"
    native.export(again, tmp_path / "back")
    assert Tokenizer.load(tmp_path / "back" / "tokenizer").describe() == given.describe()


def test_a_tokenizer_that_only_stock_can_read_is_left_out(prepared_shards: Path, tmp_path: Path) -> None:
    huggingface.export(source_of(random_model(CONFIGS["V3"]), prepared_shards / "tokenizer"), tmp_path / "hub")
    for path in (tmp_path / "hub").iterdir():
        if path.name in ("spm.model", "metadata.json"):
            path.unlink()
    source = open_source(tmp_path / "hub")
    assert source.tokenizer is None
    assert source.notes[-1].startswith("tokenizer left out: ")


def test_the_first_release_and_stock_v1_agree(tmp_path: Path) -> None:
    """The official V1 layout is that of stock DebertaForMaskedLM, which therefore loads the same file."""
    stock = stock_model("V1", legacy=False)
    stock.save_pretrained(tmp_path)
    found = ours(open_source(tmp_path))
    state = without_key_biases(dict(found.state_dict()))
    again = in_v1_layout({name: t for name, t in state.items() if "position_embeddings" not in name}, 2)
    stored = stock.state_dict()
    assert again.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.items())
    keys = json.loads((tmp_path / "config.json").read_text())
    assert keys["model_type"] == V1 and "position_buckets" not in keys
