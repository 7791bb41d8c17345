"""`pipeline("fill-mask")` gives a trained model's answers; the stock class, which has no mask decoder, does not."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.convert.fill_mask import FillMask
from deberta_scale.convert.huggingface import export
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.model.pretraining import PretrainingModel
from tests.exporting import source_of
from tests.rows import small_model_config

transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")

ANSWERS = {
    "[MASK] to to to to to to to": "she",
    "to [MASK] to to to to to to": "her",
    "to to [MASK] to to to to to": "was",
    "to to to [MASK] to to to to": "very",
    "to to to to [MASK] to to to": "the",
    "to to to to to [MASK] to to": "and",
    "to to to to to to [MASK] to": "of",
    "to to to to to to to [MASK]": "in",
    "She was very [MASK], to see him.": "not",
    "It is a truth that [MASK] was in want of a wife.": "he",
    "It is a truth that he was in want of a [MASK].": "good",
}
"""The same words around every mask of the first eight: only the place tells which is hidden."""


def train(tokenizer: Tokenizer) -> PretrainingModel:
    """A model that knows ANSWERS by heart, trained as in pretraining, each sentence a padded row.

    It sees of a distance only whether it is before, here or after, and its positions are as large as hidden states:
    so it has learnt places from the position table, which a small model with good distances would do without.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 640, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    config = small_model_config(**sizes, position_buckets=0, max_relative_positions=2, initializer_range=0.05)
    model = PretrainingModel(config)
    torch.nn.init.normal_(model.deberta.embeddings.position_embeddings.weight)
    fill_mask = FillMask(model, tokenizer)
    rows = [fill_mask.encode(sentence) for sentence in ANSWERS]
    length = max(map(len, rows))
    token_ids = torch.tensor([row + [tokenizer.pad_id] * (length - len(row)) for row in rows])
    batch = MaskedBatch(
        token_ids=token_ids,
        segment_ids=(token_ids != tokenizer.pad_id).long(),
        position_ids=torch.arange(length).expand_as(token_ids),
        predict_positions=(token_ids == tokenizer.mask_id).flatten().nonzero().flatten(),
        predict_ids=torch.tensor([tokenizer.processor.piece_to_id(f"▁{word}") for word in ANSWERS.values()]),
        max_predictions_per_row=1,
    )
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for one another in a model this small
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        loss, _, _ = model.train()(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(num_threads)
    assert loss.item() / len(rows) < 0.1, "the test's own premise: the model has learnt the sentences"
    return model.eval()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path) -> Path:
    tokenizer = prepared_shards / "tokenizer"
    vocabulary = Tokenizer.load(tokenizer)
    unknown = [word for word in ANSWERS.values() if vocabulary.processor.piece_to_id(f"▁{word}") == vocabulary.unk_id]
    assert not unknown, "the answers must be whole pieces"
    out = tmp_path_factory.mktemp("trained") / "model"
    export(source_of(train(vocabulary), tokenizer), out)
    return out


@pytest.fixture(scope="module")
def pipeline(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield transformers.pipeline("fill-mask", model=str(directory), trust_remote_code=True, device="cpu")


def test_the_pipeline_gives_the_right_word(pipeline: Any) -> None:
    assert {sentence: pipeline(sentence)[0]["token_str"] for sentence in ANSWERS} == ANSWERS
    (best, *_) = pipeline("She was very [MASK], to see him.")
    assert best["sequence"] == "She was very not, to see him."


def test_the_stock_class_does_not(directory: Path) -> None:
    """Same weights, `legacy: false`, so with the trained head: what is missing is the mask decoder."""
    stock = transformers.DebertaV2ForMaskedLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert not stock.config.legacy
    pipeline = transformers.pipeline("fill-mask", model=stock, tokenizer=tokenizer, device="cpu")
    right = [sentence for sentence, word in ANSWERS.items() if pipeline(sentence)[0]["token_str"] == word]
    assert len(right) < len(ANSWERS) / 2


def test_the_position_table_is_what_tells_the_words(directory: Path) -> None:
    fill_mask = FillMask.load(directory)
    fill_mask.model.deberta.embeddings.position_embeddings.weight.data.zero_()
    right = [sentence for sentence, word in ANSWERS.items() if fill_mask.top(sentence)[0][0][0] == word]
    assert len(right) < len(ANSWERS) / 2


def test_our_own_command_agrees_to_the_last_digits(directory: Path, pipeline: Any) -> None:
    fill_mask = FillMask.load(directory)
    for sentence, word in ANSWERS.items():
        assert fill_mask.top(sentence)[0][0][0] == word
        batch = fill_mask.batch(sentence)
        inputs = pipeline.tokenizer(sentence, return_tensors="pt")
        assert torch.equal(inputs.input_ids, batch.token_ids)
        with torch.no_grad():
            expected = fill_mask.model.logits(batch)
            found = pipeline.model(**inputs).logits.flatten(0, 1)[batch.predict_positions]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_padded_batch_and_several_masks(pipeline: Any) -> None:
    sentences = list(ANSWERS)
    for answers, word in zip(pipeline(sentences, batch_size=4), ANSWERS.values(), strict=True):
        assert answers[0]["token_str"] == word
    first, second = pipeline("to [MASK] to to to to to [MASK]", top_k=2)
    assert len(first) == len(second) == 2


def test_targets_are_pieces(pipeline: Any) -> None:
    sentence = "She was very [MASK], to see him."
    ranked = pipeline(sentence, targets=["▁was", "▁not"])
    assert [answer["token_str"] for answer in ranked] == ["not", "was"]
    (word,) = pipeline(sentence, targets=" not")
    assert word["token_str"] == "not"
    assert word["score"] == pytest.approx(ranked[0]["score"])


def test_the_code_of_the_card_runs_without_a_network(directory: Path, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert code is not None
    places = {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    environment = os.environ | places | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'token_str'" in done.stdout
