"""What inspect_shards.py finds in shards: scripts, bytes, frequencies, and rows as training sees them."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import token_sample
from data_prep.inputs import Reading, find_inputs
from data_prep.inspect_shards import inspect, preparation_of
from data_prep.masked_rows import EPOCH, PACKING, SEED, masked_rows
from data_prep.scripts_of_text import script_of, scripts_of, visible
from data_prep.token_sample import is_byte, sample_facts, spread
from data_prep.tokenize_corpus import tokenize
from deberta_scale.config import DataConfig
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.data.sampling import locate
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.tokenizer import Tokenizer
from tests.vocabularies import train_byte_pairs, write_vocabulary_and_merges


@pytest.mark.parametrize(
    ("letters", "script"),
    [
        ("aÉßﬁªＡ𝐀ↄⅎ", "Latin"),
        ("жЯ", "Cyrillic"),
        ("Ωάµ", "Greek"),
        ("漢々豈𠀀", "Han"),
        ("あアーｱゝヽﾞ", "Kana"),
        ("한ᄀㄱ", "Hangul"),
        ("กๆ", "Thai"),
        ("عﺎـﹰ", "Arabic"),
        ("א", "Hebrew"),
        ("अ", "Devanagari"),
        ("አ", "Ethiopic"),
        ("𐌀", "Old Italic"),
        ("𓀀", "Egyptian"),
        ("ʼˇ𗀀", "other"),
        ("1 .\n€🙂\u0301\ue000", None),
    ],
)
def test_the_script_of_a_letter_is_that_of_its_unicode_name(letters: str, script: str | None) -> None:
    assert {script_of(letter) for letter in letters} == {script}


def test_letters_are_counted_and_nothing_else() -> None:
    assert scripts_of("Ein Wort, слово; 言葉 (3)!") == {"Latin": 7, "Cyrillic": 5, "Han": 2}
    assert not scripts_of("12.5 € 🙂")


def test_control_characters_are_written_out_and_other_text_stays() -> None:
    assert visible("a\x1b[31m\x07\u202eb\ufeff\ud800") == "a<U+001B>[31m<U+0007><U+202E>b<U+FEFF><U+D800>"
    harmless = "tab\t line\n שלום می\u200cخواهم क्\u200dष 🙂 <b>"
    assert visible(harmless) == harmless


def test_numbers_are_spread_from_the_first_to_the_last() -> None:
    assert spread(101, 3) == [0, 50, 100]
    assert spread(2, 1000) == [0, 1]
    assert spread(1, 3) == spread(7, 1) == [0]


def starts_of(shards: ShardSet) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(shards.sequence_lengths, dtype=np.int64)])[shards.document_index]


def test_the_sample_of_a_small_split_is_all_of_it(prepared_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, tokenizer = ShardSet(prepared_shards / "train"), Tokenizer.load(prepared_shards / "tokenizer")
    monkeypatch.setattr(token_sample, "SAMPLE_TOKENS_PER_DOCUMENT", shards.num_tokens)
    facts = sample_facts(shards, tokenizer, starts_of(shards))
    counts = np.bincount(shards.read(0, shards.num_tokens))
    assert facts["sample"]["is_whole_split"] and facts["sample"]["tokens"] == shards.num_tokens
    assert facts["distinct_pieces"] == np.count_nonzero(counts)
    most = facts["frequent_pieces"][0]
    assert most["id"] == counts.argmax() and most["share"] == counts.max() / shards.num_tokens
    assert most["piece"] == tokenizer.piece(most["id"])


def test_of_long_documents_the_sample_takes_the_middle(prepared_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sample, "SAMPLE_TOKENS_PER_DOCUMENT", 10)
    monkeypatch.setattr(token_sample, "SAMPLE_DOCUMENTS", 2)
    shards, tokenizer = ShardSet(prepared_shards / "train"), Tokenizer.load(prepared_shards / "tokenizer")
    starts = starts_of(shards)
    facts = sample_facts(shards, tokenizer, starts)
    middles = [(starts[document] + starts[document + 1] - 10) // 2 for document in (0, shards.num_documents - 1)]
    counts = np.bincount(np.concatenate([shards.read(int(middle), 10) for middle in middles]))
    assert facts["sample"]["tokens"] == 20 and not facts["sample"]["is_whole_split"]
    assert facts["rank_frequency"][0] == [1, counts.max()]
    assert facts["rank_frequency"][-1] == [np.count_nonzero(counts), counts[counts > 0].min()]


@pytest.fixture(scope="module")
def written_in_many_scripts(prepared_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the English tokenizer: 30 documents in English, 10 in Russian, 10 without letters."""
    directory = tmp_path_factory.mktemp("scripts")
    texts = [f"Emma was {n} years." for n in range(30)] + [f"Слово {n}." for n in range(10)] + ["3.14 + 2"] * 10
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = find_inputs([directory / "text.jsonl"])
    tokenize(files, Reading(), prepared_shards / "tokenizer", directory / "shards", validation_fraction=0.2)
    return directory / "shards"


def test_letters_and_documents_are_counted_by_script(written_in_many_scripts: Path) -> None:
    by_split = inspect(written_in_many_scripts, ["train", "validation"], 1)
    documents = {"Latin": 0, "Cyrillic": 0}
    letters = dict(documents)
    for facts in by_split.values():
        assert sum(entry["share"] for entry in facts["scripts"]) == pytest.approx(1.0)
        for entry in facts["scripts"]:
            documents[entry["script"]] += entry["documents"]
            letters[entry["script"]] += entry["letters"]
    assert documents == {"Latin": 30, "Cyrillic": 10}
    assert letters == {"Latin": 30 * len("Emmawasyears"), "Cyrillic": 10 * len("Слово")}


def test_byte_pieces_are_counted_for_what_has_no_piece(written_in_many_scripts: Path, prepared_shards: Path) -> None:
    assert inspect(prepared_shards, ["train"], 1)["train"]["byte_rate"] < 0.01
    facts = inspect(written_in_many_scripts, ["train"], 1)["train"]
    tokenizer = Tokenizer.load(written_in_many_scripts / "tokenizer")
    shards = ShardSet(written_in_many_scripts / "train")
    pieces = [tokenizer.piece(token) for token in shards.read(0, shards.num_tokens).tolist()]
    assert facts["byte_rate"] == sum(piece.startswith("<0x") for piece in pieces) / len(pieces) > 0.1


def test_of_byte_pairs_parts_of_characters_are_bytes(tmp_path: Path, sample_documents: list[str]) -> None:
    pytest.importorskip("tokenizers", reason="what cuts text into byte pairs; pip install '.[peers]'")
    directory = write_vocabulary_and_merges(train_byte_pairs(sample_documents[:3], 400), tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(directory)
    [tokens] = tokenizer.encode(["Emma 漢"])
    assert [is_byte(tokenizer, token) for token in tokens.tolist()][-3:] == [True] * 3
    [tokens] = tokenizer.encode(["Emma was"])
    assert not any(is_byte(tokenizer, token) for token in [*tokens.tolist(), tokenizer.mask_id])


@pytest.mark.parametrize("length", [8, 64, 512])
def test_rows_are_those_that_training_sees(prepared_shards: Path, length: int) -> None:
    tokenizer = Tokenizer.load(prepared_shards / "tokenizer")
    found = masked_rows(ShardSet(prepared_shards / "train"), tokenizer, length, 3)
    config = DataConfig(shards=prepared_shards, sequence_length=length, packing=PACKING)
    loader = MaskedLoader(
        prepared_shards / "train", config, seed=SEED, micro_sequences=1, rank=0, world_size=1, model_vocab_size=10**6
    )
    assert found["rows"] == len(loader) and len(found["examples"]) == 3
    sample_of_row = {locate(number, len(loader), SEED): number for number in range(len(loader))}
    for example in found["examples"]:
        sample = loader.sample(sample_of_row[EPOCH, example["row"]])
        used = length - example["padding"]
        assert example["pieces"] == [tokenizer.piece(token) for token in sample.shown[:used].tolist()]
        assert not sample.segments[used:].any() and sample.segments[:used].all()
        predicted = [(p["place"], p["piece"]) for p in example["predicted"]]
        true = map(tokenizer.piece, sample.predicted_ids.tolist())
        assert predicted == list(zip(sample.predicted_places.tolist(), true, strict=True))
        for place, piece, done in ((p["place"], p["piece"], p["shown_as"]) for p in example["predicted"]):
            seen = example["pieces"][place]
            assert done == ("mask" if seen == "[MASK]" else "kept" if seen == piece else "random")


def test_what_the_preparation_wrote_is_read_when_it_is_there(prepared_shards: Path, tmp_path: Path) -> None:
    found = preparation_of(prepared_shards)
    assert found is not None and found["plan"]["validation_fraction"] == 0.2
    assert preparation_of(tmp_path) is None
