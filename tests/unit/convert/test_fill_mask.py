"""An exported directory fills masks by itself, with the mask decoder, and says clearly what it cannot do."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deberta_scale.convert.fill_mask import FillMask, main
from deberta_scale.convert.hub_config import hub_config
from deberta_scale.convert.source import ConversionError
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.model.pretraining import PretrainingModel
from tests.rows import small_model_config

SENTENCE = "She was very [MASK] to see [MASK]."


@pytest.fixture(scope="module")
def tokenizer(prepared_shards: Path) -> Tokenizer:
    return Tokenizer.load(prepared_shards / "tokenizer")


@pytest.fixture(scope="module")
def model() -> PretrainingModel:
    torch.manual_seed(0)
    return PretrainingModel(small_model_config(vocab_size=640)).eval()


@pytest.fixture
def directory(prepared_shards: Path, model: PretrainingModel, tmp_path: Path) -> Path:
    """The three files that matter here, written by hand."""
    (tmp_path / "config.json").write_text(json.dumps(hub_config(model.config)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    shutil.copy(prepared_shards / "tokenizer" / "spm.model", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("sentence", "pieces"),
    [
        ("It was [MASK] to see.", ["▁It", "▁was", "[MASK]", "▁to", "▁see", "."]),
        ("It was[MASK]to see.", ["▁It", "▁was", "[MASK]", "to", "▁see", "."]),
        ("[MASK] was [MASK].", ["[MASK]", "▁was", "[MASK]", "."]),
        ("[MASK][MASK]", ["[MASK]", "[MASK]"]),
        ("  [MASK]  ", ["[MASK]"]),
    ],
)
def test_text_beside_a_mask_is_cut_as_in_training(
    model: PretrainingModel, tokenizer: Tokenizer, sentence: str, pieces: list[str]
) -> None:
    ids = FillMask(model, tokenizer).encode(sentence)
    glued = [tokenizer.piece(token) for token in ids]
    assert glued[0] == "[CLS]"
    assert glued[-1] == "[SEP]"
    # the small vocabulary may cut a word into several pieces; what counts is where spaces and masks stand
    assert "".join(glued[1:-1]) == "".join(pieces)


def test_a_word_in_place_of_the_mask_leaves_the_rest_as_it_was(model: PretrainingModel, tokenizer: Tokenizer) -> None:
    masked = FillMask(model, tokenizer).encode("It was very [MASK], to see him.")
    whole = [tokenizer.cls_id, *tokenizer.encode(["It was very good, to see him."])[0].tolist(), tokenizer.sep_id]
    mask = masked.index(tokenizer.mask_id)
    rest = masked[mask + 1 :]
    assert masked[:mask] == whole[:mask]
    assert rest == whole[-len(rest) :]


def test_loaded_from_a_directory_it_is_the_same_model(directory: Path, model: PretrainingModel) -> None:
    loaded = FillMask.load(directory)
    assert loaded.model.config == model.config
    batch = loaded.batch(SENTENCE)
    with torch.no_grad():
        assert torch.equal(loaded.model.logits(batch), model.logits(batch))


def test_top_gives_the_likeliest_pieces_of_each_mask(model: PretrainingModel, tokenizer: Tokenizer) -> None:
    fill_mask = FillMask(model, tokenizer)
    filled = fill_mask.top(SENTENCE, k=3)

    with torch.no_grad():
        probabilities = model.logits(fill_mask.batch(SENTENCE)).softmax(-1)
    assert [len(candidates) for candidates in filled] == [3, 3]
    for candidates, row in zip(filled, probabilities, strict=True):
        values = [value for _, value in candidates]
        assert values == row[4 : tokenizer.pieces].topk(3).values.tolist(), "special and spare rows are no answers"


def test_all_pieces_have_a_readable_word(model: PretrainingModel, tokenizer: Tokenizer) -> None:
    words = [word for word, _ in FillMask(model, tokenizer).top("a [MASK]", k=10_000)[0]]
    assert len(words) == tokenizer.pieces - 4
    assert "the" in words, "a piece with a space sign is the word"
    assert "##ing" in words, "a piece without one goes on with the word before"
    assert "." in words, "punctuation stands alone"


def test_what_cannot_be_filled_is_said(model: PretrainingModel, tokenizer: Tokenizer) -> None:
    fill_mask = FillMask(model, tokenizer)
    with pytest.raises(ConversionError, match=r"no \[MASK\] in 'all there'"):
        fill_mask.top("all there")
    with pytest.raises(ConversionError, match=r"the sentence has \d+ tokens, the model takes 64"):
        fill_mask.top("[MASK] " + "and then " * 64)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "spm.model"])
def test_a_missing_or_damaged_file_is_named(directory: Path, name: str) -> None:
    for content in ("{}", "{"):
        (directory / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            FillMask.load(directory)
    (directory / name).unlink()
    with pytest.raises(ValueError, match=name):
        FillMask.load(directory)


def test_a_model_without_mask_decoder_is_refused(directory: Path, model: PretrainingModel) -> None:
    encoder = {name: tensor for name, tensor in model.state_dict().items() if "lm_predictions" not in name}
    save_file(encoder, directory / "model.safetensors")
    with pytest.raises(ConversionError, match=r"lacks lm_predictions.lm_head.bias, .*; take a model that has"):
        FillMask.load(directory)


def test_a_tokenizer_that_is_not_the_models_is_refused(directory: Path) -> None:
    narrow = PretrainingModel(small_model_config(vocab_size=600))
    (directory / "config.json").write_text(json.dumps(hub_config(narrow.config)))
    save_file(narrow.state_dict(), directory / "model.safetensors")
    with pytest.raises(ConversionError, match="has 601 ids, the model 600 rows"):
        FillMask.load(directory)


def test_the_command(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fill_mask", str(directory), *arguments])
        return main()

    assert run(SENTENCE, "--top", "2", "--json") == 0
    assert [len(candidates) for candidates in json.loads(capsys.readouterr().out)["masks"]] == [2, 2]
    assert run(SENTENCE) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run("nothing hidden") == 1
    assert capsys.readouterr().err == "error: no [MASK] in 'nothing hidden'; write it where a word is to be filled in\n"
