"""What inspect_shards.py finds in shards: scripts, bytes, frequencies, and rows as training sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import token_sample
from data_prep.inputs import Reading, find_inputs
from data_prep.inspect_shards import inspect, preparation_of
from data_prep.masked_rows import EPOCH, masked_rows, settings_of
from data_prep.scripts_of_text import script_of, scripts_of, visible
from data_prep.token_sample import is_byte, sample_facts, spread
from data_prep.tokenize_corpus import tokenize
from deberta_scale.config_file import load
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.data.mixture import BLOCK, Mixture
from deberta_scale.data.sampling import rows_of
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.sources import Sources, seed_of
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


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["data.sequence_length=8"], ""),
        (["data.packing=concat", "seed=7"], ""),
        (["data.packing=doc", "data.masking.compat=official"], ""),
        (["data.shards=null", "data.mixture={sources: {a: {shards: SHARDS, weight: 1, max_epochs: 9}}}"], "a"),
    ],
)
def test_rows_are_those_that_the_config_trains_on(
    prepared_shards: Path, small_config: str, tmp_path: Path, words: list[str], name: str
) -> None:
    (tmp_path / "config.yaml").write_text(small_config)
    config = load(tmp_path / "config.yaml", [word.replace("SHARDS", str(prepared_shards)) for word in words])
    tokenizer = Tokenizer.load(prepared_shards / "tokenizer")
    settings = settings_of(config, Path("config.yaml"), prepared_shards)
    found = masked_rows(Sources(prepared_shards / "train", settings.data, settings.seed), settings, 3)
    where: dict[str, Any] = {"micro_sequences": 1, "rank": 0, "world_size": 1, "model_vocab_size": 10**6}
    loader = MaskedLoader(config.data.split_dirs("train"), config.data, seed=config.seed, **where)
    length, seed = config.data.sequence_length, seed_of(name, config.seed)
    assert found["rows"] == len(loader) and len(found["examples"]) == 3
    numbers = np.arange(-(-len(loader) // BLOCK) * BLOCK)
    if config.data.mixture is not None:
        _, numbers = Mixture(config.data.mixture, 1, config.seed).locate(numbers)
    located = rows_of(np.zeros_like(numbers), numbers, np.array([len(loader)]), np.array([seed]))
    sample_of_row = {place: sample for sample, place in enumerate(zip(*map(np.ndarray.tolist, located), strict=True))}
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


def test_without_a_config_rows_are_those_of_its_defaults(prepared_shards: Path) -> None:
    rows = inspect(prepared_shards, ["train"], 1)["train"]["rows"]
    assert (rows["row_length"], rows["packing"], rows["seed"]) == (512, "best_fit", 1)
    assert rows["masking"]["probability"] == 0.15 and rows["told_by"] == "the default config"


def test_shards_that_a_mixture_does_not_have_are_refused(
    prepared_shards: Path, small_config: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(small_config)
    mixture = "data.mixture={sources: {a: {shards: elsewhere, weight: 1, max_epochs: 9}}}"
    config = load(tmp_path / "config.yaml", ["data.shards=null", mixture])
    with pytest.raises(ValueError, match=r"--config run.yaml mixes elsewhere; .* is none of them"):
        settings_of(config, Path("run.yaml"), prepared_shards)


def test_what_the_preparation_wrote_is_read_when_it_is_there(prepared_shards: Path, tmp_path: Path) -> None:
    found = preparation_of(prepared_shards)
    assert found is not None and found["plan"]["validation_fraction"] == 0.2
    assert preparation_of(tmp_path) is None
