"""Masks: 80/10/10, whole words, an exact budget, and every place as likely as any other."""

import random
from pathlib import Path

import numpy as np
import pytest

from deberta_scale.config import DataConfig, MaskingConfig
from deberta_scale.data.loader import MaskedLoader, Sample
from deberta_scale.data.masking import MAX_WORD_TOKENS, Masker
from deberta_scale.data.tokenizer import MASK_PIECE, SPECIAL, UNSPACED_SCRIPT, WORD_START, Tokenizer
from deberta_scale.data.twins import OfficialGenerator, PlainLoader

LENGTH = 128


@pytest.fixture(scope="module")
def tokenizer(prepared_shards: Path) -> Tokenizer:
    return Tokenizer.load(prepared_shards / "tokenizer")


@pytest.fixture(scope="module")
def row(prepared_shards: Path, tokenizer: Tokenizer) -> np.ndarray:
    """A full row of real text: [CLS], 126 tokens, [SEP]."""
    return unmasked(prepared_shards, "concat")[0]


def loader_of(prepared_shards: Path, packing: str, **masking: float) -> MaskedLoader:
    config = DataConfig(
        shards=prepared_shards, sequence_length=LENGTH, packing=packing, masking=MaskingConfig(**masking)
    )
    return MaskedLoader(
        prepared_shards / "train", config, seed=1, micro_sequences=1, rank=0, world_size=1, model_vocab_size=10**6
    )


def unmasked(prepared_shards: Path, packing: str) -> np.ndarray:
    loader = loader_of(prepared_shards, packing)
    samples = [loader.sample(number) for number in range(len(loader))]
    return np.array([true_tokens(sample) for sample in samples if (sample.segments > 0).all()])


def true_tokens(sample: Sample) -> np.ndarray:
    tokens = sample.shown.copy()
    tokens[sample.predicted_places] = sample.predicted_ids
    return tokens


def test_of_the_predicted_tokens_80_10_10_are_masked_random_and_kept(row: np.ndarray, tokenizer: Tokenizer) -> None:
    masker = Masker(MaskingConfig(), tokenizer)
    counts = np.zeros(3)
    for epoch in range(2000):
        shown, places = masker.mask(row, 1, epoch, 0)
        masked, kept = shown[places] == tokenizer.mask_id, shown[places] == row[places]
        counts += [masked.sum(), (~masked & ~kept).sum(), kept.sum()]
        untouched = np.ones(len(row), dtype=bool)
        untouched[places] = False
        assert (shown[untouched] == row[untouched]).all()
    assert counts / counts.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.006)


def test_every_place_is_predicted_at_the_same_rate(prepared_shards: Path, tokenizer: Tokenizer) -> None:
    """The official generator reaches the last 32 of 512 places with 4.2 % instead of 15 %."""
    rows = unmasked(prepared_shards, "concat")
    masker = Masker(MaskingConfig(), tokenizer)
    repeats = 60_000 // len(rows)
    counts = np.zeros(LENGTH)
    for epoch in range(repeats):
        for number, row in enumerate(rows):
            counts[masker.mask(row, 1, epoch, number)[1]] += 1
    rates = counts / (repeats * len(rows))
    assert rates[0] == rates[-1] == 0.0, "[CLS] and [SEP] are never predicted"
    words = rates[1:-1]
    assert words.mean() == pytest.approx(0.15, abs=1e-3)
    for part in np.array_split(words, 8):
        assert part.mean() == pytest.approx(words.mean(), abs=0.003)
    for place in range(5):
        assert words[place] == pytest.approx(words.mean(), abs=0.02)
        assert words[-1 - place] == pytest.approx(words.mean(), abs=0.02)


def test_budget_is_met_to_the_token(row: np.ndarray, tokenizer: Tokenizer) -> None:
    for probability in (0.05, 0.15, 0.4):
        masker = Masker(MaskingConfig(probability=probability), tokenizer)
        numbers = {len(masker.mask(row, 1, epoch, 0)[1]) for epoch in range(300)}
        assert numbers == {int(probability * 126 + 0.5)}


def test_words_are_predicted_whole_in_spans_of_one_to_three(row: np.ndarray, tokenizer: Tokenizer) -> None:
    flags = tokenizer.flags()[row]
    starts = (flags & (WORD_START | SPECIAL)) != 0
    starts[1:] |= (flags[:-1] & SPECIAL) != 0
    word_of_place = np.cumsum(starts)
    masker = Masker(MaskingConfig(), tokenizer)
    words_in_run: list[int] = []
    for epoch in range(500):
        chosen = np.zeros(LENGTH, dtype=bool)
        chosen[masker.mask(row, 1, epoch, 0)[1]] = True
        for word in np.unique(word_of_place):
            parts = chosen[word_of_place == word]
            assert parts.all() or not parts.any() or len(parts) > MAX_WORD_TOKENS
        edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]])))
        words_in_run += [len(set(word_of_place[a:b])) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    alone = Masker(MaskingConfig(max_span_words=1), tokenizer)
    single = [len(set(word_of_place[alone.mask(row, 1, epoch, 0)[1]])) for epoch in range(500)]
    assert 0.35 < np.mean(np.array(words_in_run) == 1) < 0.6
    assert np.mean(words_in_run) > 1.5 and np.mean(single) > 5


def test_random_tokens_and_targets_are_never_special(prepared_shards: Path, tokenizer: Tokenizer) -> None:
    loader = loader_of(prepared_shards, "best_fit", probability=0.3, mask_fraction=0.0, random_fraction=1.0)
    special = tokenizer.flags() & SPECIAL != 0
    for number in range(200):
        sample = loader.sample(number)
        assert not special[sample.predicted_ids].any()
        assert not special[sample.shown[sample.predicted_places]].any()
        assert (sample.segments[sample.predicted_places] > 0).all()


def test_masks_depend_on_seed_epoch_and_row_and_on_nothing_else(row: np.ndarray, tokenizer: Tokenizer) -> None:
    """R4."""
    masker = Masker(MaskingConfig(), tokenizer)

    def places(*key: int) -> list[int]:
        return masker.mask(row, *key)[1].tolist()

    assert places(1, 2, 3) == places(1, 2, 3)
    others = [places(2, 2, 3), places(1, 3, 3), places(1, 2, 4), places(1, 3, 2), places(2, 1, 3)]
    assert places(1, 2, 3) not in others and len({tuple(o) for o in others}) == len(others)


@pytest.mark.parametrize("maskable", [0, 1, 3])
def test_short_rows_predict_one_token_and_empty_ones_none(maskable: int, tokenizer: Tokenizer) -> None:
    word = int(np.flatnonzero(tokenizer.flags() & WORD_START)[0])
    tokens = np.array([1] + [word] * maskable + [2] + [0] * 20, dtype=np.int32)
    places = Masker(MaskingConfig(), tokenizer).mask(tokens, 1, 0, 0)[1]
    assert len(places) == min(1, maskable)


def test_a_chain_of_pieces_longer_than_any_word_is_cut(tokenizer: Tokenizer) -> None:
    flags = tokenizer.flags()
    inner = int(np.flatnonzero((flags & (WORD_START | SPECIAL)) == 0)[300])
    tokens = np.array([1] + [inner] * 100 + [2], dtype=np.int32)
    masker = Masker(MaskingConfig(max_span_words=1), tokenizer)
    for epoch in range(50):
        places = masker.mask(tokens, 1, epoch, 0)[1]
        assert 15 - MAX_WORD_TOKENS < len(places) <= 15


def test_scripts_without_spaces_are_masked_piece_by_piece(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece starts a word, or a sentence would be one. The official rule knows nothing of it."""
    unspaced = int(np.flatnonzero((tokenizer.flags() & (WORD_START | SPECIAL)) == 0)[300])
    flags = tokenizer.flags()
    flags[unspaced] = WORD_START | UNSPACED_SCRIPT
    monkeypatch.setattr(tokenizer, "flags", flags.copy)
    sentence = np.array([1] + [unspaced] * 100 + [2])
    ours, official = (Masker(MaskingConfig(max_span_words=2, compat=c), tokenizer) for c in ("none", "official"))
    assert all(len(ours.mask(sentence, 1, epoch, 0)[1]) == 15 for epoch in range(20))
    assert all(len(official.mask(sentence, 1, epoch, 0)[1]) == 100 for epoch in range(20)), "one word"


@pytest.mark.parametrize("max_span_words", [1, 3])
def test_official_masks_have_the_distribution_of_the_released_algorithm(
    prepared_shards: Path, tokenizer: Tokenizer, max_span_words: int
) -> None:
    """Place by place, and in number, against the algorithm told again on lists of pieces; 77 of 512 tokens."""
    length, repeats = 512, 60
    twin = PlainLoader(
        prepared_shards / "train", DataConfig(shards=prepared_shards, sequence_length=length, packing="concat"), seed=1
    )
    rows = [tokens for row in range(len(twin.rows)) if len(tokens := twin.true_row(row)[0]) == length][:40]
    generator = OfficialGenerator(tokenizer, length, max_span_words)
    masker = Masker(MaskingConfig(max_span_words=max_span_words, compat="official"), tokenizer)
    expected, found = (np.zeros((len(rows) * repeats, length), dtype=bool) for _ in range(2))
    kinds = np.zeros((2, 3))
    for number, row in enumerate(rows * repeats):
        pieces = [tokenizer.piece(token) for token in row]
        shown = list(pieces)
        expected[number] = [label is not None for label in generator.mask(shown, random.Random(number))]
        kinds[0] += kinds_of(np.array(shown)[expected[number]], np.array(pieces)[expected[number]], MASK_PIECE)
        ids, places = masker.mask(np.array(row), 1, number, 0)
        found[number, places] = True
        kinds[1] += kinds_of(ids[places], np.array(row)[places], tokenizer.mask_id)
    for part in (slice(1, 65), slice(65, 385), slice(385, 449), slice(449, 479), slice(479, 511)):
        assert found[:, part].mean() == pytest.approx(expected[:, part].mean(), abs=0.004)
    assert found.sum(axis=1).mean() == pytest.approx(expected.sum(axis=1).mean(), abs=0.1)
    assert found.sum(axis=1).std() == pytest.approx(expected.sum(axis=1).std(), abs=0.1)
    assert kinds[1] / kinds[1].sum() == pytest.approx(kinds[0] / kinds[0].sum(), abs=0.005)
    # The bias: 1/6 of the beginning, and little or nothing of the end.
    assert found[:, 1:385].mean() == pytest.approx(1 / 6, abs=0.005)
    tail = found[:, 479:511].mean()
    assert tail == 0.0 if max_span_words == 1 else 0.01 < tail < 0.1
    ours = Masker(MaskingConfig(max_span_words=max_span_words), tokenizer)
    flat = np.zeros(length)
    for number, row in enumerate(rows * repeats):
        flat[ours.mask(np.array(row), 1, number, 0)[1]] += 1 / (len(rows) * repeats)
    assert flat[479:511].mean() == pytest.approx(0.15, abs=0.01)


def kinds_of(shown: np.ndarray, true: np.ndarray, mask: object) -> list[int]:
    """How many are masked, kept and replaced."""
    masked, kept = shown == mask, shown == true
    return [masked.sum(), kept.sum(), (~masked & ~kept).sum()]


def test_official_masking_predicts_80_of_1024_and_draws_special_tokens_too(tokenizer: Tokenizer) -> None:
    word = int(np.flatnonzero(tokenizer.flags() & WORD_START)[0])
    settings = {"compat": "official", "max_span_words": 1, "mask_fraction": 0.0, "random_fraction": 1.0}
    masker = Masker(MaskingConfig.model_validate(settings), tokenizer)
    tokens = np.array([1] + [word] * 1022 + [2])
    drawn = set()
    for epoch in range(200):
        shown, places = masker.mask(tokens, 1, epoch, 0)
        assert len(places) == 80
        drawn |= set(shown[places].tolist())
    assert drawn == set(range(tokenizer.vocabulary_size))


def test_official_masking_reaches_the_last_32_of_512_places_with_4_percent(tokenizer: Tokenizer) -> None:
    """With a third of the pieces inside words, as measured with the released code on English; quarters, too."""
    flags = tokenizer.flags()
    start = int(np.flatnonzero(flags == WORD_START)[0])
    inner = int(np.flatnonzero((flags & (WORD_START | SPECIAL)) == 0)[300])
    generator = np.random.default_rng(0)
    masker = Masker(MaskingConfig(compat="official"), tokenizer)
    counts, repeats = np.zeros(510), 4000
    for epoch in range(repeats):
        row = np.concatenate([[1], np.where(generator.random(510) < 1 / 3, inner, start), [2]])
        counts[masker.mask(row, 1, epoch, 0)[1] - 1] += 1
    rates = counts / repeats
    assert [quarter.mean() for quarter in np.array_split(rates, 4)] == pytest.approx(
        [0.166, 0.166, 0.166, 0.108], abs=0.004
    )
    assert rates[-32:].mean() == pytest.approx(0.042, abs=0.008)
