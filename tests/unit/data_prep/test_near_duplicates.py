"""Documents with small edits are found, different ones kept, whatever the units; datasketch's own index agrees."""

import random
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.band_groups import stretches_of
from data_prep.deduplication import groups_among, merge_range
from data_prep.near_duplicates import (
    BANDS,
    NearDuplicateConfig,
    UnitSignatures,
    near_duplicates_in,
    shingles_of,
    write_near_duplicates,
)
from data_prep.records import Document, paragraphs_of
from data_prep.scripts_of_text import words_of
from deberta_scale.data.tokenizer_pieces import is_unspaced

CONFIG = NearDuplicateConfig()


def near_duplicates(
    directory: Path, units: list[list[Document]], config: NearDuplicateConfig = CONFIG, num_ranges: int = 2
) -> list[int]:
    """Numbers in the whole corpus."""
    pytest.importorskip("datasketch", reason="the extra `prepare` is not installed")
    places = [directory / f"unit-{number}" for number in range(len(units))]
    for unit in reversed(range(len(units))):
        places[unit].mkdir(parents=True)
        signatures = UnitSignatures(places[unit], config, run_records=100)
        for document in units[unit]:
            signatures.add(document)
        signatures.finish()
    for number in range(num_ranges):
        merge_range(places, BANDS, number, num_ranges, directory, groups_among)
    path = write_near_duplicates(config, places, directory)
    starts = np.cumsum([0, *map(len, units)])
    return [int(starts[unit]) + int(n) for unit in range(len(units)) for n in near_duplicates_in(unit, path)]


def edited(document: Document, share: float, seed: int) -> Document:
    """The document with a share of its words replaced."""
    generator = random.Random(seed)
    words = [paragraph.split() for paragraph in document]
    return [" ".join("edit" if generator.random() < share else word for word in paragraph) for paragraph in words]


def similarity(first: Document, second: Document) -> float:
    one, other = (set(shingles_of(document, CONFIG.shingle_words).tolist()) for document in (first, second))
    return len(one & other) / len(one | other)


@pytest.fixture(scope="module")
def novels(sample_documents: list[str]) -> list[Document]:
    return [paragraphs_of(text)[:30] for text in sample_documents[:24]]


def test_small_edits_are_found_and_other_pieces_of_novels_kept(tmp_path: Path, novels: list[Document]) -> None:
    copies = [edited(novels[n], 0.01, n) for n in range(6)]
    assert min(map(similarity, novels, copies)) > 0.85
    different = [edited(novels[n], 0.2, n) for n in range(6, 9)]
    assert max(similarity(novels[n], different[n - 6]) for n in range(6, 9)) < 0.5
    corpus = [*novels, *different, *copies]
    first_copy = len(novels) + len(different)
    assert near_duplicates(tmp_path, [corpus]) == list(range(first_copy, first_copy + 6))


def test_units_and_ranges_change_nothing(tmp_path: Path, novels: list[Document]) -> None:
    corpus = [copy for n in range(8) for copy in (novels[n], edited(novels[n], 0.02, n), edited(novels[n], 0.03, -n))]
    random.Random(0).shuffle(corpus)
    whole = near_duplicates(tmp_path / "whole", [corpus])
    assert len(whole) >= 12
    for size in (1, 5, 7):
        units = [corpus[start : start + size] for start in range(0, len(corpus), size)]
        assert near_duplicates(tmp_path / f"by-{size}", units, num_ranges=size) == whole


def test_the_decision_is_bytewise_the_same_and_made_once(tmp_path: Path, novels: list[Document]) -> None:
    units = [novels[:3], novels[1:4]]
    decisions = []
    for name in ("one", "other"):
        near_duplicates(tmp_path / name, units)
        decisions.append(tmp_path / name / "near_duplicates.npy")
    assert decisions[0].read_bytes() == decisions[1].read_bytes()
    written = decisions[0].stat().st_mtime_ns
    assert write_near_duplicates(CONFIG, [], tmp_path / "one") == decisions[0]
    assert decisions[0].stat().st_mtime_ns == written


def test_the_librarys_own_index_finds_the_same_candidates(tmp_path: Path, novels: list[Document]) -> None:
    copies = [edited(document, 0.003 * n, n) for n, document in enumerate(novels)]
    config = NearDuplicateConfig(threshold=0.01)  # every pair that shares a band
    found = near_duplicates(tmp_path, [novels, copies], config)

    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=config.permutations, params=(config.bands, config.permutations // config.bands))
    expected = []
    for number, document in enumerate([*novels, *copies]):
        sketch = MinHash(config.permutations, seed=config.seed, hashfunc=int)
        sketch.update_batch(shingles_of(document, config.shingle_words).tolist())
        if index.query(sketch):
            expected.append(number)
        index.insert(number, sketch)
    assert 5 < len(expected) < len(novels)
    assert found == expected


def clusters_of_all_pairs(corpus: list[Document], config: NearDuplicateConfig, directory: Path) -> list[int]:
    """Numbers of all but the first of each cluster, from the definition, one pair after the other."""
    directory.mkdir()
    make = UnitSignatures(directory, config)
    signatures = [make.signature_of(shingles_of(document, config.shingle_words)) for document in corpus]
    cluster = list(range(len(corpus)))
    for one, other in combinations(range(len(corpus)), 2):
        agree = signatures[one] == signatures[other]
        if agree.reshape(config.bands, -1).all(axis=1).any() and agree.mean() >= config.threshold:
            cluster = [cluster[one] if each == cluster[other] else each for each in cluster]
    return [number for number in range(len(corpus)) if number != cluster.index(cluster[number])]


@pytest.mark.parametrize("seed", range(4))
def test_documents_that_are_alike_are_found_though_the_first_of_their_band_is_like_neither(
    tmp_path: Path, seed: int
) -> None:
    """With few bands a document shares its only one with many that are not like it."""
    generator = random.Random(seed)
    config = NearDuplicateConfig(permutations=12, bands=4, threshold=0.75, shingle_words=1, seed=seed)
    corpus = [[" ".join(generator.sample("abcdefghijklmnopqrst", 9))] for _ in range(60)]
    expected = clusters_of_all_pairs(corpus, config, tmp_path / "signatures")
    assert 10 < len(expected) < 40
    assert near_duplicates(tmp_path / "found", [corpus[:20], corpus[20:]], config) == expected


@given(st.lists(st.integers(2, 9), max_size=6), st.integers(2, 5))
def test_a_group_of_too_many_is_cut_into_stretches_that_all_have_its_first(sizes: list[int], most: int) -> None:
    begins = np.concatenate([np.empty(0, bool), *(np.arange(size) == 0 for size in sizes)])
    found = [
        documents[start:end].tolist()
        for documents, borders in stretches_of(begins, most)
        for start, end in pairwise(borders.tolist())
    ]
    expected = []
    for first, size in zip(np.cumsum([0, *sizes])[:-1].tolist(), sizes, strict=True):
        for start in range(0, size, most):
            expected.append([first] * (start > 0) + [first + n for n in range(start, min(start + most, size))])
    assert found == expected


def test_a_cluster_is_joined_by_pairs_and_its_first_stays(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(400)]
    chain = [[" ".join(words[start : start + 300])] for start in (40, 20, 0)]  # alike in turn, the ends are not
    config = NearDuplicateConfig(threshold=0.8, permutations=256, bands=64)
    assert similarity(chain[0], chain[1]) > 0.85 and similarity(chain[0], chain[2]) < 0.78
    assert near_duplicates(tmp_path / "chain", [chain], config) == [1, 2]
    assert near_duplicates(tmp_path / "ends", [[chain[0], chain[2]]], config) == []


def test_thai_and_chinese_are_compared_by_characters(tmp_path: Path) -> None:
    generator = random.Random(0)
    for number, alphabet in enumerate(("กขคงจฉชซฌญ", "天地玄黄宇宙洪荒日月")):
        text = "".join(generator.choice(alphabet) for _ in range(2000))
        other = "".join(generator.choice(alphabet) for _ in range(2000))
        corpus = [[text], [other], [text[:900] + alphabet[0] + text[900:]]]
        assert near_duplicates(tmp_path / f"{number}", [corpus]) == [2]


def test_words_keep_their_marks_and_characters_of_unspaced_scripts_too() -> None:
    assert words_of("हिन्दी में लिखा। தமிழ் எழுத்து!") == ["हिन्दी", "में", "लिखा", "தமிழ்", "எழுத்து"]
    assert words_of("cafe\u0301s, نمی\u200cخواهم مُحَمَّد") == ["cafe\u0301s", "نمی\u200cخواهم", "مُحَمَّد"]
    assert words_of("ไม่เว้น ဗမာစာ។ ខ្មែរ, 猫である。") == [
        *("ไ", "ม่", "เ", "ว้", "น", "ဗ", "မာ", "စာ", "ខ្", "មែ", "រ", "猫", "で", "あ", "る")
    ]
    assert words_of("ｱｲ、𠀀𠀁ㇰx9") == ["ｱ", "ｲ", "𠀀", "𠀁", "ㇰ", "x9"]
    assert words_of("Don't (stop) ❤\ufe0f • \u0301 …") == ["Don", "t", "stop"]


@given(st.text(st.characters(categories=("L", "M", "N", "P", "Zs")), max_size=40))
def test_every_letter_is_in_one_word_and_a_character_of_an_unspaced_script_begins_one(text: str) -> None:
    words = words_of(text)
    letters = [c for c in text if c.isalnum()]
    assert [c for word in words for c in word if c.isalnum()] == letters
    assert all(word[0].isalnum() or word[0] == "_" for word in words)
    assert not any(is_unspaced(ord(c)) and c.isalnum() for word in words for c in word[1:])


def test_documents_of_few_words_are_alike_only_when_equal_and_those_of_none_never(tmp_path: Path) -> None:
    corpus = [["Yes, sir."], ["* * *"], ["No, sir."], ["yes sir"], ["..."], []]
    assert near_duplicates(tmp_path, [corpus]) == [3]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_equal_shingles_have_equal_hashes_and_different_ones_others(words: list[str], width: int) -> None:
    expected = [tuple(words[start : start + width]) for start in range(max(1, len(words) - width + 1))] if words else []
    hashes = shingles_of([" ".join(words)], width).tolist()
    assert len(hashes) == len(expected)
    assert len(set(hashes)) == len(set(expected)) == len(set(zip(hashes, expected, strict=True)))


def test_the_config_says_what_it_finds() -> None:
    told = CONFIG.describe()
    assert (told["threshold"], told["permutations"], told["bands"], told["rows_per_band"]) == (0.8, 128, 16, 8)
    assert told["chance_of_comparison"]["0.80"] == pytest.approx(0.947, abs=1e-3)
    with pytest.raises(ValueError, match="bands 7 do not divide permutations 128"):
        NearDuplicateConfig(bands=7)


def test_without_the_library_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ValueError, match=r"pip install 'deberta-scale\[prepare\]'"):
        UnitSignatures(tmp_path, CONFIG)
