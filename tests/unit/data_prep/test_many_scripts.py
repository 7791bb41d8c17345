"""Text in many scripts → tokenizer → shards → masked samples: no character is lost, words are what they should be."""

import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_prep.inputs import Reading, find_inputs
from data_prep.tokenize_corpus import SPLITS, tokenize
from data_prep.train_tokenizer import train
from deberta_scale.config import DataConfig
from deberta_scale.data.loader import MaskedLoader, Sample
from deberta_scale.data.masking import MAX_WORD_TOKENS
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.tokenizer import SPECIAL, UNSPACED_SCRIPT, WORD_START, Tokenizer

LENGTH = 64
VOCABULARY = 475
NUM_DOCUMENTS = 240
UNSPACED = {
    "Chinese": (
        ["我们", "老师", "小猫", "他们"],
        ["今天", "明天", "晚上"],
        ["在家里", "在公园", "在学校"],
        ["看书。", "喝茶。", "学习。"],
    ),
    "Japanese": (
        ["猫が", "先生は", "私も", "友だちは"],
        ["きょう", "あした"],
        ["コーヒーを", "お茶を"],
        ["飲みます。", "買いました。"],
    ),
    "Thai": (["แมว", "ครู", "เด็ก", "เพื่อน"], ["ชอบ", "ไม่ได้"], ["กินปลา", "อ่านหนังสือ"], ["ที่บ้าน", "วันนี้"]),
}
"""Of each what the words of a sentence are chosen from, written without spaces."""
SPACED = {
    "Korean": (
        ["고양이가", "선생님은", "우리는"],
        ["오늘", "내일"],
        ["집에서", "학교에서"],
        ["책을 읽습니다.", "차를 마십니다."],
    ),
    "Arabic": (["القطة", "المعلم", "الولد"], ["يقرأ", "يشرب"], ["الكتاب", "الشاي"], ["في البيت.", "اليوم."]),
    "Hindi": (["बिल्ली", "शिक्षक", "लड़की"], ["आज", "कल"], ["घर में", "स्कूल में"], ["किताब पढ़ती है।", "चाय पीती है।"]),
    "Russian": (
        ["кошка", "учитель", "мальчик"],
        ["сегодня", "завтра"],
        ["дома", "в школе"],
        ["читает книгу.", "пьёт чай."],
    ),
}
EXTRAS = ("😀", "👩‍👧", "🇯🇵", "👍🏽", "x̂", "q̃ ạ̈")
"""Emoji of several code points and letters with marks that no letter has composed, too rare for pieces of their own."""
RARE = "龘"
"""A Han character that occurs once in a while, so that bytes stand in for it."""


def sentences(language: str, count: int) -> list[str]:
    choose = random.Random(language)
    slots, space = (UNSPACED[language], "") if language in UNSPACED else (SPACED[language], " ")
    return [space.join(choose.choice(slot) for slot in slots) for _ in range(count)]


def documents() -> list[tuple[str, str]]:
    """(language, text of a few sentences); some with emoji, combining characters or a rare character."""
    found = []
    for language in (*UNSPACED, *SPACED):
        lines = sentences(language, 4 * NUM_DOCUMENTS)
        for number in range(NUM_DOCUMENTS):
            text = "\n".join(lines[4 * number : 4 * number + 4])
            if number % 40 == 0:
                text += f"\n{EXTRAS[number // 40 % len(EXTRAS)]}"
            if language == "Chinese" and number % 60 == 0:
                text += f"\n小猫{RARE}学习"
            found.append((language, text))
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scripts")
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for _, text in documents()]
    (directory / "text.jsonl").write_text("".join(lines), encoding="utf-8")
    files = find_inputs([directory / "text.jsonl"])
    train(files, Reading(), VOCABULARY, directory / "tokenizer", character_coverage=0.998)
    tokenize(files, Reading(), directory / "tokenizer", directory / "shards", validation_fraction=0.1)
    return directory / "shards"


@pytest.fixture(scope="module")
def tokenizer(shards: Path) -> Tokenizer:
    return Tokenizer.load(shards / "tokenizer")


@pytest.fixture(scope="module")
def samples(shards: Path) -> list[Sample]:
    """An epoch and a half."""
    config = DataConfig(shards=shards, sequence_length=LENGTH)
    loader = MaskedLoader(
        shards / "train", config, seed=1, micro_sequences=1, rank=0, world_size=1, model_vocab_size=500
    )
    return [loader.sample(number) for number in range(len(loader) * 3 // 2)]


def words_of(tokenizer: Tokenizer, text: str) -> list[list[str]]:
    """As masking sees them: the pieces of each."""
    flags = tokenizer.flags()
    words: list[list[str]] = []
    for token in tokenizer.encode([text])[0]:
        if flags[token] & WORD_START or not words:
            words.append([])
        words[-1].append(tokenizer.piece(token))
    return words


def normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def test_no_token_is_unknown(shards: Path) -> None:
    for split in SPLITS:
        assert ShardSet(shards / split).unknown_tokens == 0


def test_what_is_in_the_shards_decodes_to_the_text(shards: Path, tokenizer: Tokenizer) -> None:
    texts = {normalised(line) for _, text in documents() for line in text.split("\n")}
    found = set()
    for split in SPLITS:
        opened = ShardSet(shards / split)
        start = 0
        for length in opened.sequence_lengths.tolist():
            found.add(tokenizer.decode(opened.read(start, length)))
            start += length
    assert found == texts


@pytest.mark.parametrize("text", [*EXTRAS, RARE, f"小猫{RARE}学习", "한국어 👩‍👧 किताब q̃"])
def test_what_has_no_piece_of_its_own_comes_back_through_bytes(tokenizer: Tokenizer, text: str) -> None:
    [ids] = tokenizer.encode([text])
    assert any(tokenizer.piece(token).startswith("<0x") for token in ids) and tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == normalised(text)


@pytest.mark.parametrize("language", UNSPACED)
def test_every_piece_of_a_script_without_spaces_is_a_word(tokenizer: Tokenizer, language: str) -> None:
    for text in sentences(language, 60):
        words = words_of(tokenizer, text)
        assert all(len(word) == 1 for word in words), words
        assert len(words) > 2


@pytest.mark.parametrize("language", SPACED)
def test_words_of_a_script_with_spaces_are_what_stands_between_them(tokenizer: Tokenizer, language: str) -> None:
    split_somewhere = False
    for text in sentences(language, 60):
        words = words_of(tokenizer, text)
        split_somewhere |= any(len(word) > 1 for word in words)
        spelled = ["".join(word).removeprefix("▁") for word in words]
        assert "".join(spelled).replace(".", "") == text.replace(" ", "").replace(".", "")
        for mark in ".।":
            text = text.replace(mark, f" {mark}")
        assert spelled == text.split()
    assert split_somewhere, "some words have several pieces, else this shows nothing"


def test_a_han_character_in_bytes_is_a_word_of_its_own(tokenizer: Tokenizer) -> None:
    words = words_of(tokenizer, f"小猫{RARE}学习")
    assert [f"<0x{byte:02X}>" for byte in RARE.encode()] in words


def test_an_emoji_in_bytes_is_never_cut_apart(tokenizer: Tokenizer) -> None:
    for emoji in ("😀", "👩‍👧", "👍🏽"):
        [*_, last] = words_of(tokenizer, f"кошка {emoji}")
        assert len([piece for piece in last if piece.startswith("<0x")]) == len(emoji.encode())


def test_masked_samples_of_all_scripts_take_whole_words(tokenizer: Tokenizer, samples: list[Sample]) -> None:
    flags = tokenizer.flags()
    predicted_unspaced = predicted_longer = 0
    for sample in samples:
        tokens = sample.shown.copy()
        tokens[sample.predicted_places] = sample.predicted_ids
        assert tokenizer.unk_id not in tokens
        starts = flags[tokens] & (WORD_START | SPECIAL) != 0
        starts[1:] |= flags[tokens[:-1]] & SPECIAL != 0
        word_of_place = np.cumsum(starts)
        chosen = np.zeros(LENGTH, dtype=bool)
        chosen[sample.predicted_places] = True
        for word in np.unique(word_of_place[chosen]):
            parts = word_of_place == word
            assert chosen[parts].all() or parts.sum() > MAX_WORD_TOKENS
            predicted_longer += parts.sum() > 1
        predicted_unspaced += int((flags[sample.predicted_ids] & UNSPACED_SCRIPT != 0).sum())
    assert predicted_unspaced > 100 and predicted_longer > 100


def test_samples_decode_to_the_text(tokenizer: Tokenizer, samples: list[Sample]) -> None:
    """Segments are documents, or a part of one: without the bytes that a cut may have left alone."""
    texts = ["".join(normalised(text).split()) for _, text in documents()]
    everything = "\n".join(texts)
    for sample in samples:
        tokens = sample.shown.copy()
        tokens[sample.predicted_places] = sample.predicted_ids
        for segment in range(1, sample.segments.max() + 1):
            text = tokenizer.decode(tokens[sample.segments == segment])
            assert "".join(text.split()).strip("\ufffd") in everything
