"""What cannot be converted is refused by file and reason, before anything is written, and never run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deberta_scale.convert import native, official
from deberta_scale.convert.formats import open_source
from deberta_scale.convert.hub_config import hub_config, model_config
from tests.exporting import CONFIGS, random_model, source_of
from tests.foreign_models import V1_MODEL, V1_OFFICIAL, in_v1_layout, write_official
from tests.launching import ROOT

CONFIG = CONFIGS["V3"]
STATE = dict(random_model(CONFIG).state_dict())
WORDS = "deberta.embeddings.word_embeddings.weight"


def refused(path: Path, *words: str) -> None:
    """One line that has all these words, and nothing left behind by any export."""
    before = sorted(path.parent.rglob("*"))
    for export in (native.export, official.export):
        with pytest.raises(ValueError) as caught:
            export(open_source(path), path.parent / "destination")
        for word in words:
            assert word in str(caught.value)
    assert sorted(path.parent.rglob("*")) == before


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "was run"
    path = write_official(tmp_path / "model", STATE, CONFIG)
    torch.save(STATE | {"config": Malicious(mark)}, path, _use_new_zipfile_serialization=zipped)
    refused(path.parent, str(path), "holds more than tensors", "code in a file is never run")
    assert not mark.exists()


def test_code_in_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    path = write_official(tmp_path / "model", STATE, CONFIG)
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "was run").encode() + b"'\ntR.")
    refused(path.parent, str(path), "holds more than tensors: it names os.system")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("size", [0, 10, 1000, -1000])
def test_a_truncated_pickle(tmp_path: Path, size: int) -> None:
    path = write_official(tmp_path / "model", STATE, CONFIG)
    path.write_bytes(path.read_bytes()[:size])
    refused(path.parent, str(path), "damaged, cut short, or not written by torch.save")


def test_a_flipped_bit_in_a_tensor(tmp_path: Path) -> None:
    path = write_official(tmp_path / "model", STATE, CONFIG)
    content = bytearray(path.read_bytes())
    content[content.find(STATE[WORDS].numpy().tobytes()) + 99] ^= 1
    path.write_bytes(content)
    refused(path.parent, str(path), "does not have its check sum")


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"truncated"])
def test_a_damaged_safetensors_file(tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "model"
    native.export(source_of(random_model(CONFIG), None), model)
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] if content == b"truncated" else content)
    refused(model, str(path), "not a whole safetensors file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(2), ["holds a Tensor, not named tensors"]),
        ({"model": STATE}, ["'model' is a dict, not a tensor; save pytorch_model.bin['model'] alone"]),
        (STATE | {"step": 7}, ["'step' is a int, not a tensor"]),
        (STATE | {"extra.weight": torch.ones(2)}, ["extra.weight is no tensor of the model that its config describes"]),
        (STATE | {f"deberta.encoder.layer.{n}.x": torch.ones(2) for n in (7, 8)}, ["layer.7.x is no", "nor 1 more"]),
        ({name: t for name, t in STATE.items() if "value" not in name}, ["value_proj.bias is missing"]),
        ({name: t for name, t in STATE.items() if "lm_head.bias" not in name}, ["lm_head.bias is missing"]),
        (STATE | {WORDS: torch.ones(90, 32)}, [f"{WORDS} has shape (90, 32), the config gives (640, 32)"]),
        (STATE | {WORDS.replace("deberta", "bert"): torch.ones(1)}, ["twice, also as bert.embeddings"]),
        (STATE | {"cls.predictions.decoder.weight": STATE[WORDS] + 1}, ["no table of its own"]),
        (STATE | {WORDS: torch.ones(640, 32, dtype=torch.int8)}, [WORDS, "stored as int8", "not quantised"]),
    ],
)  # fmt: skip
def test_other_contents(tmp_path: Path, content: Any, words: list[str]) -> None:
    if isinstance(content, dict) and "cls.predictions.decoder.weight" in content:
        content = {name: tensor for name, tensor in content.items() if not name.startswith("lm_predictions.")}
    refused(write_official(tmp_path / "model", content, CONFIG).parent, str(tmp_path / "model"), *words)


def test_another_number_of_heads_than_v1_was_cut_for(tmp_path: Path) -> None:
    stored = in_v1_layout(dict(random_model(V1_MODEL).state_dict()), 2)
    path = write_official(tmp_path / "model", stored, V1_OFFICIAL | {"attention_head_size": 8})
    refused(path.parent, "in_proj.weight has shape (96, 32), the config gives 3 x num_attention_heads 2 x 8 rows")


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(hub_config(CONFIG)))
    refused(model, "config.json has no weights beside it")
    index = model / "model.safetensors.index.json"
    for content, problem in (
        ("{}", "no index of shards"),
        ({"weight_map": {WORDS: "a.safetensors"}}, "names the shard a.safetensors, which is not there"),
        ({"weight_map": {WORDS: "../b.safetensors"}}, "names the shard ../b.safetensors"),
    ):
        index.write_text(content if isinstance(content, str) else json.dumps(content))
        refused(model, str(index), problem)
    index.write_text(json.dumps({"weight_map": {WORDS: "a.safetensors"}}))
    save_file({"other": torch.ones(1)}, model / "a.safetensors")
    refused(model, str(model / "a.safetensors"), f"does not hold {WORDS}")


RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p"}
V2_KEYS = V1_OFFICIAL | RELATIVE | {"model_type": "deberta-v2"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', can be converted: deberta, deberta-v2"),
        ({"type_vocab_size": 2}, "type_vocab_size is 2: token types"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu': only gelu"),
        ({"conv_kernel_size": 3, "conv_groups": 2}, "conv_groups is 2: only 1"),
        ({"conv_kernel_size": 3, "conv_act": "relu"}, "conv_act: Input should be 'gelu' or 'tanh'"),
        ({"conv_kernel_size": 4}, "conv_kernel_size 4 is even"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd is 'batch_norm': expected layer_norm or none"),
        ({"pos_att_type": "c2p|p2c|p2p"}, "pos_att_type is 'c2p|p2c|p2p': expected c2p and/or p2c"),
        ({"pos_att_type": "none"}, "pos_att_type is 'none': expected c2p and/or p2c"),
        ({"position_biased_input": True}, "position_biased_input is True: with relative_attention True"),
        ({"relative_attention": False}, "position_biased_input is False: with relative_attention False"),
        ({"relative_attention": False, "position_biased_input": True}, "without relative_attention expected none"),
        ({"talking_head": True}, "talking_head is True"),
        ({"vocab_size": None}, "vocab_size is None, expected a positive number"),
        ({"position_buckets": "many"}, "position_buckets is 'many', expected a number"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
    ],
)
def test_other_architectures(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    model = tmp_path / "model"
    native.export(source_of(random_model(CONFIG), None), tmp_path / "native")
    model.mkdir()
    (tmp_path / "native" / "model.safetensors").rename(model / "model.safetensors")
    (model / "config.json").write_text(json.dumps(V2_KEYS | changes))
    refused(model, f"{model / 'config.json'}: ", problem)


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "gone does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no run directory", "no checkpoint", "no deberta-scale directory", "config.json")
    (tmp_path / "notes.txt").write_text("mine")
    refused(tmp_path / "notes.txt", "not a file of weights")
    path = write_official(tmp_path / "bare", STATE, CONFIG)
    (tmp_path / "bare" / "model_config.json").write_text("{")
    refused(tmp_path / "bare", "model_config.json: not valid JSON")
    (tmp_path / "bare" / "model_config.json").write_text('{"hidden_size": 32}')
    refused(tmp_path / "bare", "neither model_type nor relative_attention")
    (tmp_path / "bare" / "model_config.json").unlink()
    refused(path, str(path), "neither model_config.json nor config.json beside it")


def test_a_half_published_checkpoint(tmp_path: Path) -> None:
    partial = tmp_path / "step-00000005.partial"
    (partial / "engine").mkdir(parents=True)
    refused(partial, f"{partial} has no COMPLETE marker: it was never finished")
    (partial / "manifest.json").write_text("{}")
    refused(partial, f"{partial} has no COMPLETE marker: it was never finished")


def test_a_damaged_native_directory(tmp_path: Path) -> None:
    native.export(source_of(random_model(CONFIG), None), tmp_path / "model")
    shape = (tmp_path / "model" / "model.yaml").read_text()
    for content, problem in (
        ("a: [", "not valid YAML"),
        ("hidden_size: 32", "vocab_size: required, but not given"),
        (shape.replace("num_hidden_layers: 3", "num_hidden_layers: 2"), "config describes, nor 15 more"),
        (shape.replace("position_buckets: 16", "position_buckets: 18"), "rel_embeddings.weight has shape (32, 32)"),
    ):
        (tmp_path / "model" / "model.yaml").write_text(content)
        refused(tmp_path / "model", str(tmp_path / "model"), problem)


def test_a_tokenizer_of_another_model(prepared_shards: Path, tmp_path: Path) -> None:
    small = CONFIG.model_copy(update={"vocab_size": 90})
    source = source_of(random_model(small), prepared_shards / "tokenizer")
    for export in (native.export, official.export):
        with pytest.raises(ValueError, match="has 601 ids, the model 90 rows"):
            export(source, tmp_path / "destination")
    assert not list(tmp_path.iterdir())


def test_heads_of_another_width_than_the_official_code_knows(tmp_path: Path) -> None:
    wide = CONFIG.model_copy(update={"attention_head_size": 24})
    with pytest.raises(ValueError, match="attention_head_size 24 is not hidden_size 32, and the official code knows"):
        official.export(source_of(random_model(wide), None), tmp_path / "official")
    native.export(source_of(random_model(wide), None), tmp_path / "native")
    assert open_source(tmp_path / "native").config == wide


def test_the_command_leaves_nothing(tmp_path: Path) -> None:
    write_official(tmp_path / "model", STATE | {"extra": torch.ones(1)}, CONFIG)
    command = [sys.executable, ROOT / "launch" / "convert.py", tmp_path / "model", tmp_path / "out", "--to", "official"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'model' / 'pytorch_model.bin'}: extra is no tensor")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_released_configs_are_read() -> None:
    """The keys that the released files have, at a small size."""
    assert model_config(V1_OFFICIAL, Path("model_config.json")) == V1_MODEL
    as_list = V1_OFFICIAL | {"model_type": "deberta", "pos_att_type": ["c2p", "p2c"], "legacy": True}
    assert model_config(as_list, Path("config.json")) == V1_MODEL
    v3 = V2_KEYS | {"position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    expected = V1_MODEL.model_copy(
        update={
            "pos_att_type": ("p2c", "c2p"),
            "share_att_key": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
        }
    )
    assert model_config(v3, Path("config.json")) == expected
    xlarge = v3 | {"conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 16, "pooler_dropout": 0}
    assert model_config(xlarge, Path("config.json")) == expected.model_copy(update={"conv_kernel_size": 3})
    del xlarge["conv_act"]
    assert model_config(xlarge, Path("config.json")).conv_act == "tanh", "the default of the official code"
