"""Every form a DeBERTa is published in is recognised, and gives the tensors of our model, bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deberta_scale.config_file import load
from deberta_scale.convert import native, official
from deberta_scale.convert.formats import open_source
from deberta_scale.data.tokenizer import Tokenizer
from tests.exporting import CONFIGS, random_model, source_of, without
from tests.foreign_models import (
    V1_MODEL,
    V1_OFFICIAL,
    State,
    assert_holds,
    in_v1_layout,
    without_key_biases,
    write_official,
)
from tests.launching import ROOT
from tests.published import publish_checkpoint


def state_of(name: str) -> State:
    return dict(random_model(CONFIGS[name]).state_dict())


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_to_official_to_ours(prepared_shards: Path, tmp_path: Path, name: str) -> None:
    given = source_of(random_model(CONFIGS[name]), prepared_shards / "tokenizer")
    official.export(given, tmp_path / "official")
    found = open_source(tmp_path / "official")
    assert (found.kind, found.config) == ("official checkpoint", CONFIGS[name])
    assert_holds(found, state_of(name))
    assert found.notes == ()
    assert found.tokenizer is not None
    assert Tokenizer.load(found.tokenizer).sha256 == Tokenizer.load(prepared_shards / "tokenizer").sha256


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_to_native_to_ours(prepared_shards: Path, tmp_path: Path, name: str) -> None:
    given = source_of(
        random_model(CONFIGS[name]), prepared_shards / "tokenizer", facts={"step": 7, "run_dir": tmp_path}
    )
    assert native.export(given, tmp_path / "native") == ()
    found = open_source(tmp_path / "native")
    assert (found.kind, found.config) == ("deberta-scale directory", CONFIGS[name])
    assert_holds(found, state_of(name))
    assert found.facts == {"step": 7}
    written = Tokenizer.load(tmp_path / "native" / "tokenizer")
    assert written.sha256 == Tokenizer.load(prepared_shards / "tokenizer").sha256


def test_a_run_and_its_checkpoint_are_one_model(prepared_shards: Path, small_config: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copytree(prepared_shards / "tokenizer", run_dir / "tokenizer")
    (run_dir / "config.yaml").write_text(small_config)
    model = random_model(load(run_dir / "config.yaml").model)
    published = publish_checkpoint(run_dir, model.state_dict(), step=5, ranks=2)
    for path in (run_dir, published):
        source = open_source(path)
        assert (source.kind, source.path, source.facts["step"]) == ("checkpoint", published, 5)
        assert_holds(source, dict(model.state_dict()))
    native.export(source, tmp_path / "native")
    found = open_source(tmp_path / "native")
    assert found.config == source.config and found.facts == {"step": 5}
    assert_holds(found, dict(model.state_dict()))


def test_official_file_has_the_names_and_shapes_of_the_release(tmp_path: Path) -> None:
    official.export(source_of(random_model(CONFIGS["V2-XLarge, narrow words"]), None), tmp_path / "v2")
    official.export(source_of(random_model(CONFIGS["V1"]), None), tmp_path / "v1")
    v2 = torch.load(tmp_path / "v2" / "pytorch_model.bin", weights_only=True, mmap=True)
    layers = [f"deberta.encoder.layer.{number}." for number in range(3)]
    linear = {f"{layer}{part}" for layer in layers for part in (
        "attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj",
        "attention.output.dense", "attention.output.LayerNorm",
        "intermediate.dense", "output.dense", "output.LayerNorm",
    )}  # fmt: skip
    linear |= {"deberta.embeddings.LayerNorm", "deberta.encoder.LayerNorm", "deberta.encoder.conv.conv"}
    linear |= {"deberta.encoder.conv.LayerNorm", "lm_predictions.lm_head.dense", "lm_predictions.lm_head.LayerNorm"}
    tables = {"deberta.embeddings.word_embeddings", "deberta.embeddings.position_embeddings"}
    tables |= {"deberta.embeddings.embed_proj", "deberta.encoder.rel_embeddings"}
    expected = {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}
    expected |= {f"{name}.weight" for name in tables} | {"lm_predictions.lm_head.bias"}
    assert v2.keys() == expected
    assert v2["deberta.encoder.conv.conv.weight"].shape == (32, 32, 3)
    assert v2["deberta.encoder.rel_embeddings.weight"].shape == (2 * 16, 32)
    assert {tensor.dtype for tensor in v2.values()} == {torch.float32}
    v1 = torch.load(tmp_path / "v1" / "pytorch_model.bin", weights_only=True, mmap=True)
    of_attention = {name.partition("attention.self.")[2] for name in v1} - {""}
    projections = ("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj")
    assert of_attention == {f"{name}.{kind}" for name in projections for kind in ("weight", "bias")}
    assert sorted(path.name for path in (tmp_path / "v1").iterdir()) == ["model_config.json", "pytorch_model.bin"]


def test_official_limits_are_told(tmp_path: Path) -> None:
    notes = official.export(source_of(random_model(CONFIGS["p2c only"]), None), tmp_path / "p2c")
    assert "fails in its first forward pass" in notes[0] and "no tokenizer" in notes[1]
    notes = official.export(source_of(random_model(CONFIGS["V2-XLarge, narrow words"]), None), tmp_path / "narrow")
    assert "position tables as wide as words" in notes[0]


@pytest.mark.parametrize("prefix", ["deberta.", "bert."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_official_release(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in random_model(V1_MODEL).state_dict().items()}
    stored = {name.replace("deberta.", prefix, 1): tensor for name, tensor in in_v1_layout(state, 2).items()}
    write_official(tmp_path, stored, V1_OFFICIAL)
    found = open_source(tmp_path)
    assert found.config == V1_MODEL
    assert_holds(found, {name: tensor.float() for name, tensor in without_key_biases(state).items()})
    assert ("read as float32" in found.notes[0]) == (dtype != torch.float32)
    assert "in_proj cut into query, key and value; key biases" in found.notes[-1]


def test_files_saved_by_old_torch_and_with_their_config(tmp_path: Path) -> None:
    content = state_of("V3") | {"config": official.official_config(CONFIGS["V3"])}
    torch.save(content, tmp_path / "mine.bin", _use_new_zipfile_serialization=False)
    found = open_source(tmp_path / "mine.bin")
    assert found.config == CONFIGS["V3"] and found.tokenizer is None
    assert_holds(found, state_of("V3"))


def test_the_latest_of_official_training_checkpoints(tmp_path: Path) -> None:
    state = state_of("V3")
    write_official(tmp_path, state, CONFIGS["V3"]).rename(tmp_path / "pytorch.model-000900.bin")
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "pytorch.model-001000.bin")
    found = open_source(tmp_path)
    assert found.facts["weights_file"] == "pytorch.model-001000.bin"
    assert_holds(found, {name: tensor + 1 for name, tensor in state.items()})
    assert_holds(open_source(tmp_path / "pytorch.model-000900.bin"), state)


WORDS, PLACES = "deberta.embeddings.word_embeddings", "deberta.embeddings.position_embeddings"
FINDER = {"mask_predictions.dense.weight": torch.ones(32, 32), "mask_predictions.classifier.bias": torch.ones(1)}


def test_a_v3_discriminator_keeps_the_sums_it_was_saved_with(tmp_path: Path) -> None:
    state = state_of("V3")
    halved = {name: tensor.half() for name, tensor in (state | FINDER).items()}
    deltas = {f"{table}._weight": torch.ones(1) for table in (WORDS, PLACES)}
    write_official(tmp_path, halved | deltas, CONFIGS["V3"])
    found = open_source(tmp_path)
    assert_holds(found, {name: tensor.half().float() for name, tensor in state.items()})
    assert any("mask_predictions.* dropped" in note for note in found.notes)
    assert sum("`weight` taken, which holds the generator's table + `_weight`" in note for note in found.notes) == 2


def test_a_v3_pair_is_added_up(tmp_path: Path) -> None:
    """In a file of both models `weight` is that of the last forward pass, and the sum that of the next."""
    generator = state_of("V3")
    own = {name: tensor + 1 for name, tensor in generator.items() if not name.startswith("lm_predictions.")}
    deltas = {f"{table}._weight": torch.full_like(own[f"{table}.weight"], 0.25) for table in (WORDS, PLACES)}
    sums = {f"{table}.weight": generator[f"{table}.weight"] + 0.25 for table in (WORDS, PLACES)}
    pair = {f"generator.{name}": tensor for name, tensor in generator.items()}
    pair |= {f"discriminator.{name}": tensor for name, tensor in (own | deltas | FINDER).items()}
    keys = official.official_config(CONFIGS["V3"])
    keys = {"embedding_sharing": "gdes", "discriminator": keys, "generator": keys | {"num_hidden_layers": 2}}
    write_official(tmp_path, pair, keys)
    found = open_source(tmp_path)
    assert_holds(found, own | sums)
    assert any("the discriminator is taken" in note for note in found.notes)
    assert sum("sum of the generator's table" in note for note in found.notes) == 2
    assert any("no masked language modelling head" in note for note in found.notes)

    alone = own | deltas | FINDER
    del alone[f"{WORDS}.weight"], alone[f"{PLACES}.weight"]
    write_official(tmp_path, alone, keys)
    with pytest.raises(ValueError, match=r"difference from the generator's table .* put pytorch_model.generator.bin"):
        open_source(tmp_path)
    torch.save(generator, tmp_path / "pytorch_model.generator.bin")
    assert_holds(open_source(tmp_path), own | sums)


def test_a_generator_is_a_model_of_its_own(tmp_path: Path) -> None:
    write_official(tmp_path, state_of("V3"), CONFIGS["V3"])
    small = CONFIGS["V3"].model_copy(update={"num_hidden_layers": 2})
    generator = dict(random_model(small).state_dict())
    torch.save(generator, tmp_path / "pytorch_model.generator.bin")
    (tmp_path / "generator_config.json").write_text(json.dumps(official.official_config(small)))
    assert_holds(open_source(tmp_path / "pytorch_model.generator.bin"), generator)
    assert_holds(open_source(tmp_path), state_of("V3"))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_of_a_hugging_face_directory(tmp_path: Path, kind: str) -> None:
    state = state_of("V3")
    (tmp_path / "config.json").write_text(
        json.dumps(official.official_config(CONFIGS["V3"]) | {"model_type": "deberta-v2"})
    )
    first = "model" if kind == "safetensors" else "pytorch_model"
    places = {}
    for number in (0, 1, 2):
        part = dict(list(state.items())[number::3])
        file_name = f"{first}-{number + 1:05d}-of-00003.{kind}"
        save_file(part, tmp_path / file_name) if kind == "safetensors" else torch.save(part, tmp_path / file_name)
        places |= dict.fromkeys(part, file_name)
    (tmp_path / f"{first}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = open_source(tmp_path)
    assert found.kind == "Hugging Face directory"
    assert_holds(found, state)


def test_what_a_baseline_does_not_use_is_dropped(tmp_path: Path) -> None:
    """The official bert_base.json asks for a norm of the relative table that it does not have."""
    state = state_of("baseline")
    unused = {f"deberta.encoder.LayerNorm.{kind}": torch.ones(32) for kind in ("weight", "bias")}
    keys = official.official_config(CONFIGS["baseline"]) | {"norm_rel_ebd": "layer_norm", "share_att_key": True}
    write_official(tmp_path, state | unused, keys | {"position_buckets": 256})
    found = open_source(tmp_path)
    assert_holds(found, state)
    assert "encoder.LayerNorm dropped" in found.notes[0]


def test_a_fine_tuned_encoder_and_what_it_lacks(tmp_path: Path) -> None:
    encoder = {name: tensor for name, tensor in state_of("V3").items() if not name.startswith("lm_predictions.")}
    del encoder[f"{PLACES}.weight"]
    heads = {"pooler.dense.weight": torch.ones(32, 32), "classifier.weight": torch.ones(3, 32)}
    write_official(tmp_path / "tuned", encoder | heads, CONFIGS["V3"])
    found = open_source(tmp_path / "tuned")
    assert_holds(found, encoder)
    assert [note.split(" ")[0] for note in found.notes[:2]] == ["classifier.*", "pooler.*"]
    assert "no table of absolute positions" in found.notes[2] and "no masked language modelling head" in found.notes[3]
    for export in (native.export, official.export):
        destination = tmp_path / export.__module__
        export(found, destination)
        assert_holds(open_source(destination), encoder)


def test_a_tokenizer_as_released_is_written_as_data_preparation_takes_it(prepared_shards: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "released", state_of("V3"), CONFIGS["V3"])
    shutil.copy(prepared_shards / "tokenizer" / "spm.model", tmp_path / "released")
    native.export(open_source(tmp_path / "released"), tmp_path / "native")
    ours = tmp_path / "native" / "tokenizer"
    assert (ours / "metadata.json").is_file()
    assert (ours / "spm.model").read_bytes() == (prepared_shards / "tokenizer" / "spm.model").read_bytes()
    assert Tokenizer.load(ours).describe() == Tokenizer.load(prepared_shards / "tokenizer").describe()


def test_weights_stay_in_their_file_until_they_are_asked_for(tmp_path: Path) -> None:
    write_official(tmp_path, state_of("V3"), CONFIGS["V3"])
    source = open_source(tmp_path)
    first, second = (source.weights.read(f"{WORDS}.weight") for _ in range(2))
    first.zero_()
    assert not torch.equal(first, second), "each call gives memory of its own"


def convert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "launch" / "convert.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_what_it_recognised_and_did(prepared_shards: Path, tmp_path: Path) -> None:
    model = write_official(tmp_path / "model", state_of("V3") | FINDER, CONFIGS["V3"]).parent
    shutil.copy(prepared_shards / "tokenizer" / "spm.model", model)
    done = convert(model, tmp_path / "ours", "--to", "deberta-scale")
    assert done.returncode == 0, done.stderr
    recognised, note, wrote, following = done.stdout.splitlines()
    assert recognised.startswith(f"reading {model}: official checkpoint, ")
    assert note.startswith("note: mask_predictions.* dropped")
    assert wrote.startswith(f"wrote {tmp_path / 'ours'}: ")
    assert following.startswith("next: python data_prep/tokenize_corpus.py")
    done = convert(tmp_path / "ours", tmp_path / "again", "--to", "official", "--json")
    facts = json.loads(done.stdout)
    assert (facts["kind"], facts["form"], facts["notes"]) == ("deberta-scale directory", "official", [])
    assert_holds(open_source(tmp_path / "again"), state_of("V3"))
    (model / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and then nothing")
    failed = convert(model, tmp_path / "nothing", "--to", "official")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {model / 'pytorch_model.bin'}: damaged, cut short")
    assert failed.stderr.count("\n") == 1
    assert not list(tmp_path.glob("nothing*"))


def test_missing_parts_are_not_made_up(tmp_path: Path) -> None:
    whole = source_of(random_model(CONFIGS["V3"]), None)
    half = source_of(random_model(CONFIGS["V3"]), None, weights=without(whole, "lm_predictions.lm_head.dense"))
    with pytest.raises(ValueError, match=r"lm_predictions.lm_head.dense.bias is missing"):
        native.export(half, tmp_path / "half")
    assert not list(tmp_path.iterdir())
