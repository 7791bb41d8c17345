"""Text → shards → masked samples → text again, with every kind of tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.add_tokens import add_tokens
from data_prep.inputs import Reading, find_inputs
from data_prep.inspect_shards import inspect
from data_prep.tokenize_corpus import SPLITS, tokenize
from deberta_scale.config import DataConfig
from deberta_scale.data.loader import MaskedLoader, Sample
from deberta_scale.data.masking import MAX_WORD_TOKENS
from deberta_scale.data.shards import ShardError, ShardSet
from deberta_scale.data.tokenizer import SPECIAL, WORD_START, Tokenizer, TokenizerError
from tests.vocabularies import train_byte_pairs, write_official, write_vocabulary_and_merges

LENGTH = 64
ADDED = ["Emma Woodhouse", "Mr. Knightley", "<name>"]
KINDS = ("released sentencepiece", "sentencepiece, added", "byte pairs", "official byte pairs", "byte pairs, added")


@pytest.fixture(scope="module")
def tokenizers(
    prepared_shards: Path, sample_documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A directory of each kind."""
    pytest.importorskip("tokenizers", reason="what cuts text into byte pairs; pip install '.[peers]'")
    parent = tmp_path_factory.mktemp("tokenizers")
    found = {name: parent / str(number) for number, name in enumerate(KINDS)}
    vocabulary = train_byte_pairs(sample_documents[:10], 700)
    found["released sentencepiece"].mkdir()
    shutil.copy(prepared_shards / "tokenizer" / "spm.model", found["released sentencepiece"])
    add_tokens(prepared_shards / "tokenizer", ADDED, found["sentencepiece, added"])
    write_vocabulary_and_merges(vocabulary, found["byte pairs"])
    write_official(vocabulary, found["official byte pairs"])
    add_tokens(found["byte pairs"], ADDED, found["byte pairs, added"])
    return found


@pytest.fixture(scope="module")
def documents(sample_documents: list[str]) -> list[list[str]]:
    texts = [[p for p in document.split("\n") if p][:12] for document in sample_documents[:30]]
    return [*texts, *([f"said <name> to <name>, and Mr. Knightley number {n}."] for n in range(20))]


@pytest.fixture(scope="module", params=KINDS)
def shards(
    request: pytest.FixtureRequest,
    tokenizers: dict[str, Path],
    documents: list[list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    lines = [json.dumps({"text": "\n".join(document)}) + "\n" for document in documents]
    (directory / "text.jsonl").write_text("".join(lines))
    files = find_inputs([directory / "text.jsonl"])
    tokenize(files, Reading(), tokenizers[request.param], directory / "shards", validation_fraction=0.2)
    return directory / "shards"


def loader_of(shards: Path) -> MaskedLoader:
    config = DataConfig(shards=shards, sequence_length=LENGTH)
    return MaskedLoader(
        shards / "train", config, seed=1, micro_sequences=1, rank=0, world_size=1, model_vocab_size=10**6
    )


def true_tokens(sample: Sample) -> np.ndarray:
    tokens = sample.shown.copy()
    tokens[sample.predicted_places] = sample.predicted_ids
    return tokens


def test_the_tokenizer_beside_the_shards_is_the_one_that_cut_them(shards: Path) -> None:
    tokenizer = Tokenizer.load(shards / "tokenizer")
    for split in SPLITS:
        manifest = json.loads((shards / split / "manifest.json").read_text())
        assert manifest["tokenizer_sha256"] == tokenizer.sha256
        assert manifest["tokenizer_kind"] == tokenizer.kind
        assert manifest["added_tokens"] == list(tokenizer.added_tokens)
        assert manifest["vocabulary_size"] == tokenizer.vocabulary_size
    assert (shards / "tokenizer" / "metadata.json").exists(), "a released one gets a record too"


def test_samples_decode_to_the_text(shards: Path, documents: list[list[str]]) -> None:
    tokenizer, loader = Tokenizer.load(shards / "tokenizer"), loader_of(shards)
    # byte pairs have no sign where a paragraph begins; added tokens are written with a space before them
    texts = {"".join("".join(document).split()) for document in documents}
    seen = ""
    for number in range(len(loader)):
        sample = loader.sample(number)
        for segment in range(1, sample.segments.max() + 1):
            tokens = true_tokens(sample)[sample.segments == segment]
            text = "".join(tokenizer.decode(tokens).split())
            assert any(text in whole for whole in texts), text
            seen += text
    if tokenizer.added_tokens:
        assert all("".join(token.split()) in seen for token in tokenizer.added_tokens)


def test_masks_take_whole_words(shards: Path) -> None:
    tokenizer, loader = Tokenizer.load(shards / "tokenizer"), loader_of(shards)
    flags = tokenizer.flags()
    first_added = tokenizer.vocabulary_size - len(tokenizer.added_tokens)
    predicted_added = 0
    for number in range(4 * len(loader)):
        sample = loader.sample(number)
        tokens = true_tokens(sample)
        starts = flags[tokens] & (WORD_START | SPECIAL) != 0
        starts[1:] |= flags[tokens[:-1]] & SPECIAL != 0
        word_of_place = np.cumsum(starts)
        chosen = np.zeros(LENGTH, dtype=bool)
        chosen[sample.predicted_places] = True
        for word in np.unique(word_of_place[chosen]):
            parts = chosen[word_of_place == word]
            assert parts.all() or len(parts) > MAX_WORD_TOKENS
        assert not (flags[sample.predicted_ids] & SPECIAL).any()
        predicted_added += int((sample.predicted_ids >= first_added).sum())
    assert (predicted_added > 0) == bool(tokenizer.added_tokens), "added tokens are learnt"


def test_inspection_reads_them(shards: Path) -> None:
    [example] = inspect(shards, ["train"], 1)["train"]["examples"]
    assert example["text"][0].startswith("Emma Woodhouse")
    signs = {"▁": " ", "Ġ": " "}
    spelled = "".join(example["pieces"][0]).translate(str.maketrans(signs)).strip()
    assert spelled.startswith("Emma Woodhouse, handsome")


def test_the_vocabulary_of_byte_pairs_beside_shards_cannot_be_changed(shards: Path, tmp_path: Path) -> None:
    if Tokenizer.load(shards / "tokenizer").kind != "byte_pair":
        return
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    path = copy / "tokenizer" / "merges.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(TokenizerError, match=r"vocab\.json: its sha256 .*it was changed or damaged"):
        Tokenizer.load(copy / "tokenizer")


def test_shards_are_refused_beside_the_tokenizer_with_other_added_tokens(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    add_tokens(copy / "tokenizer", ["<another>"], tmp_path / "grown")
    shutil.rmtree(copy / "tokenizer")
    (tmp_path / "grown").rename(copy / "tokenizer")
    with pytest.raises(ShardError, match="made with another tokenizer"):
        loader_of(copy)
    assert ShardSet(copy / "train").vocabulary_size < Tokenizer.load(copy / "tokenizer").vocabulary_size
