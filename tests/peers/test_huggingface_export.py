"""What is exported means the same to stock transformers as to us."""

import dataclasses
import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch

from deberta_scale.config_file import load
from deberta_scale.convert import huggingface
from deberta_scale.convert.fill_mask import FillMask
from deberta_scale.convert.hub_config import read_model_config
from deberta_scale.convert.huggingface import export
from deberta_scale.convert.source import ConversionError, Weights
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.train import checkpoint
from tests.exporting import CONFIGS, export_all, random_model, source_of, without
from tests.launching import ROOT
from tests.published import publish_checkpoint
from tests.rows import small_model_config

transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")

TEXTS = [
    "She was very [MASK] to see him.",
    "[MASK], said he;[MASK] is un[MASK]able!  [MASK]",
    "  Two  spaces,\ttabs\nand\u00a0other\u3000space ",
    "",
    "naïve café, Ångström, Škoda, crème brûlée, tiếng Việt",
    unicodedata.normalize("NFD", "naïve café, Ångström, Škoda, crème brûlée, tiếng Việt, 한국어, ガギグ"),
    "emoji 😀 and a family 👩‍👩‍👧, a flag 🇫🇷, a skin 👍🏽",
    "日本語の文章。「５０％」 中文、한국어 ｶﾞｷﾞ ～ ﬁne ½ ① … “quoted” — dash",
    "हिन्दी क्षि, العربية, می\u200cخواهم, ไทย",
    "bytes <0x41> and <0x0A>, controls \x01\x7f\ufeff\u200b, ▁literal▁",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path) -> dict[str, Path]:
    return export_all(tmp_path_factory.mktemp("exported"), prepared_shards / "tokenizer")


@pytest.mark.parametrize("name", CONFIGS)
def test_stock_encoder_gives_our_hidden_states(exported: dict[str, Path], name: str) -> None:
    ours = random_model(CONFIGS[name])
    stock, loading = transformers.AutoModel.from_pretrained(exported[name], output_loading_info=True)
    assert type(stock).__name__ == "DebertaV2Model"
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    assert all(key.startswith("lm_predictions.") for key in loading["unexpected_keys"])
    saved = ours.deberta.state_dict()
    assert stock.state_dict().keys() <= saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in stock.state_dict().items())

    length, short = 60, 41
    token_ids = torch.randint(4, 640, (2, length))
    segment_ids = torch.ones_like(token_ids)
    token_ids[1, short:], segment_ids[1, short:] = 0, 0
    with torch.no_grad():
        expected = ours.deberta(token_ids, segment_ids, torch.arange(length).expand(2, -1)).hidden
        found = stock.eval()(input_ids=token_ids, attention_mask=segment_ids).last_hidden_state
    is_token = segment_ids.bool()
    torch.testing.assert_close(found[is_token], expected[is_token], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_fill_mask_is_the_trained_model(exported: dict[str, Path], name: str) -> None:
    assert read_model_config(exported[name]) == CONFIGS[name]
    ours, loaded = random_model(CONFIGS[name]), FillMask.load(exported[name])
    batch = loaded.batch(TEXTS[0])
    with torch.no_grad():
        assert torch.equal(loaded.model.logits(batch), ours.logits(batch))


def test_a_stock_masked_language_model_is_right_for_the_baseline(exported: dict[str, Path]) -> None:
    stock = transformers.AutoModelForMaskedLM.from_pretrained(exported["baseline"]).eval()
    fill_mask = FillMask.load(exported["baseline"])
    batch = fill_mask.batch(TEXTS[0])
    with torch.no_grad():
        found = stock(input_ids=batch.token_ids).logits.flatten(0, 1)[batch.predict_positions]
        torch.testing.assert_close(found, fill_mask.model.logits(batch), rtol=0, atol=1e-4)


def test_stock_tokenizer_gives_the_ids_of_training(
    exported: dict[str, Path], prepared_shards: Path, sample_documents: list[str]
) -> None:
    stock = transformers.AutoTokenizer.from_pretrained(exported["V3"])
    ours = Tokenizer.load(prepared_shards / "tokenizer")
    paragraphs = [paragraph for document in sample_documents for paragraph in document.split("\n") if paragraph]
    texts = [text for text in TEXTS if "[MASK]" not in text] + paragraphs
    for text, ids in zip(texts, ours.encode(texts), strict=True):
        assert stock(text).input_ids == [ours.cls_id, *ids.tolist(), ours.sep_id], text[:80]


def test_stock_tokenizer_sees_masks_as_fill_mask_does(exported: dict[str, Path]) -> None:
    stock = transformers.AutoTokenizer.from_pretrained(exported["V3"])
    fill_mask = FillMask.load(exported["V3"])
    assert stock.mask_token_id == fill_mask.tokenizer.mask_id
    for text in TEXTS:
        assert stock(text).input_ids == fill_mask.encode(text), text
    pair = stock("one", "two [MASK].")
    assert stock.decode(pair.input_ids) == "[CLS] one[SEP] two[MASK].[SEP]"
    assert stock.decode(stock("naïve 😀 text").input_ids, skip_special_tokens=True) == "naïve 😀 text"


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
@pytest.mark.parametrize("name", ["V3", "V2-XLarge, narrow words", "V1"])
def test_stock_heads_start_from_the_whole_encoder(exported: dict[str, Path], name: str, head: str) -> None:
    automatic = getattr(transformers, f"AutoModelFor{head}")
    stock, loading = automatic.from_pretrained(exported[name], trust_remote_code=False, output_loading_info=True)
    assert type(stock) is getattr(transformers, f"DebertaV2For{head}")
    assert all(key.startswith(("classifier.", "pooler.", "qa_outputs.")) for key in loading["missing_keys"])
    saved = random_model(CONFIGS[name]).deberta.state_dict()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in stock.deberta.state_dict().items())


def test_a_source_without_tokenizer_gives_a_model_without(tmp_path: Path) -> None:
    (note,) = export(source_of(random_model(CONFIGS["V3"]), tokenizer=None), tmp_path / "out")
    assert note.startswith("no tokenizer: random has none; copy the files of the one that")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "modeling_deberta_scale.py", "README.md"}
    assert note in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("lacking", ["deberta.embeddings.position_embeddings", "lm_predictions."])
def test_a_source_without_decoder_gives_an_encoder(prepared_shards: Path, tmp_path: Path, lacking: str) -> None:
    model, out = random_model(CONFIGS["V3"]), tmp_path / "out"
    whole = source_of(model, prepared_shards / "tokenizer")
    source = dataclasses.replace(whole, weights=without(whole, lacking), notes=("it was found in the attic",))
    from_source, own = export(source, out)
    assert from_source == "it was found in the attic"
    assert own.startswith(f"cannot fill masks: random lacks {lacking}")
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert not (out / "modeling_deberta_scale.py").exists()
    card = (out / "README.md").read_text()
    assert own in card and from_source in card and "pipeline(" not in card
    stock = transformers.AutoModel.from_pretrained(out)
    assert torch.equal(
        stock.state_dict()["embeddings.word_embeddings.weight"],
        whole.weights.read("deberta.embeddings.word_embeddings.weight"),
    )
    with pytest.raises(ConversionError, match="without which masks cannot be filled"):
        FillMask.load(out)


def test_refusals(prepared_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tokenizer = CONFIGS["V3"], prepared_shards / "tokenizer"
    source = source_of(random_model(config), tokenizer)
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine").touch()
    with pytest.raises(ValueError, match="used exists and is not empty"):
        export(source, used)
    wide = small_model_config(vocab_size=640, attention_head_size=24)
    with pytest.raises(ConversionError, match="attention_head_size 24 is not hidden_size 32"):
        export(source_of(random_model(wide), tokenizer), tmp_path / "out")
    with pytest.raises(ConversionError, match="601 ids, the model 90 rows"):
        export(dataclasses.replace(source, config=small_model_config()), tmp_path / "out")
    with pytest.raises(ConversionError, match=r"rel_embeddings.weight has shape \(32, 32\), .* \(128, 32\)"):
        linear = small_model_config(vocab_size=640, position_buckets=0)
        export(dataclasses.replace(source, config=linear), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConversionError, match=r"needs tokenizers, .* 'deberta-scale\[peers\]'"):
        export(source, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [used]


def test_a_failed_export_leaves_nothing(prepared_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, weights: Weights) -> None:
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface, "write_safetensors", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(source_of(random_model(CONFIGS["V3"]), prepared_shards / "tokenizer"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run_dir(prepared_shards: Path, small_config: str, tmp_path: Path) -> Path:
    """A run that has trained nothing: a checkpoint, and what lies beside it."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copytree(prepared_shards / "tokenizer", run_dir / "tokenizer")
    (run_dir / "config.yaml").write_text(small_config)
    publish_checkpoint(run_dir, random_model(load(run_dir / "config.yaml").model).state_dict(), step=5)
    return run_dir


def convert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "launch" / "convert.py", *arguments, "--to", "huggingface"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_exports_a_run_and_a_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    done = convert(run_dir, tmp_path / "from-run")
    assert done.returncode == 0, done.stderr
    assert "step-00000005 (the newest complete checkpoint; all digests agree)" in done.stdout
    assert "next: python -m deberta_scale.convert.fill_mask" in done.stdout
    done = convert(checkpoint.checkpoint_dir(run_dir, 5), tmp_path / "from-checkpoint", "--json")
    assert json.loads(done.stdout)["step"] == 5
    for path in (tmp_path / "from-run").iterdir():
        assert path.read_bytes() == (tmp_path / "from-checkpoint" / path.name).read_bytes()
    assert len(FillMask.load(tmp_path / "from-run").top(TEXTS[0])) == 1


def test_the_command_says_what_is_wrong(run_dir: Path, tmp_path: Path) -> None:
    with (checkpoint.checkpoint_dir(run_dir, 5) / "engine" / "rank-00000.safetensors").open("ab") as file:
        file.write(b"!")
    failed = convert(run_dir, tmp_path / "out")
    assert failed.returncode == 1
    passed_over, error = failed.stderr.splitlines()
    assert passed_over.startswith("passed over step-00000005: ")
    assert error.endswith("holds no complete checkpoint whose digests agree")
    failed = convert(tmp_path, tmp_path / "out")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {tmp_path} is no run directory")
    assert failed.stderr.count("\n") == 1
