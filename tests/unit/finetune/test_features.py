"""Examples become rows that fit the model, and nothing is cut without being told."""

from collections.abc import Sequence

import numpy as np
import pytest
import sentencepiece

from deberta_scale.data.tokenizer import CLS_ID, SEP_ID, Tokenizer
from deberta_scale.finetune.features import IGNORED, batch_of, features_of
from deberta_scale.finetune.features_spans import MAX_ANSWER_TOKENS, span_predictions
from deberta_scale.finetune.predictions import label_predictions, word_predictions
from deberta_scale.finetune.readers import NO_ANSWER, Example
from deberta_scale.finetune.rows import Row
from deberta_scale.finetune.tasks import TASKS
from tests.vocabularies import train_pieces

SENTENCE = "Ann and Bob sang in Rome for the old king while it rained on every street of the town"
WORDS = SENTENCE.split()
CONTEXT = " ".join(WORDS * 4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Most words of these texts are one piece."""
    model = train_pieces([" ".join(WORDS)] * 50 + list(WORDS), 400)
    return Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode([text])[0]]


def text_of(tokenizer: Tokenizer, row: Row) -> str:
    return tokenizer.decode(row.sequences[0])


def test_a_pair_between_special_tokens(tokenizer: Tokenizer) -> None:
    example = Example(("Ann sang", "it rained"), "entailment")
    features = features_of(TASKS["rte"], [example], tokenizer, 64)
    expected = [CLS_ID, *ids(tokenizer, "Ann sang"), SEP_ID, *ids(tokenizer, "it rained"), SEP_ID]
    (row,) = features.rows
    assert row.sequences[0].tolist() == expected
    assert row.target == 1
    assert features.notes == ()


@pytest.mark.parametrize(("first", "second"), [(3, 40), (40, 3), (40, 40), (9, 10), (5, 5), (0, 40)])
def test_of_a_pair_the_longer_text_is_cut_first(tokenizer: Tokenizer, first: int, second: int) -> None:
    one, other = "it " * first, "Ann " * second
    lengths = [len(ids(tokenizer, one)), len(ids(tokenizer, other))]
    kept = list(lengths)
    while sum(kept) > 16 - 3:
        kept[0 if kept[0] > kept[1] else 1] -= 1
    (row,) = features_of(TASKS["rte"], [Example((one, other), "entailment")], tokenizer, 16).rows
    separators = np.flatnonzero(row.sequences[0] == SEP_ID)
    assert sorted([separators[0] - 1, separators[1] - separators[0] - 1]) == sorted(kept)
    assert separators[0] - 1 == pytest.approx(kept[0], abs=1)  # the odd token goes to either
    assert len(row.sequences[0]) == min(16, sum(lengths) + 3)


def test_texts_that_are_cut_are_told(tokenizer: Tokenizer) -> None:
    examples = [Example((CONTEXT,), "1"), Example(("Ann sang",), "0")]
    features = features_of(TASKS["sst-2"], examples, tokenizer, 16)
    longest = len(ids(tokenizer, CONTEXT)) + 2
    assert features.notes == (
        f"1 of 2 texts are longer than 16 tokens (the longest: {longest}); their ends were left out",
    )
    assert features.rows[0].sequences[0].tolist() == [CLS_ID, *ids(tokenizer, CONTEXT)[:14], SEP_ID]


def test_choices_are_rows_of_one_example(tokenizer: Tokenizer) -> None:
    example = Example((), "1", choices=(("it rained", "Ann sang"), ("Bob", "Ann sang")))
    batch = batch_of(features_of(TASKS["copa"], [example, example], tokenizer, 32).rows)
    assert batch.token_ids.shape == (2, 2, len(ids(tokenizer, "it rained Ann sang")) + 3)
    assert batch.token_ids[0, 1, 1] == ids(tokenizer, "Bob")[0]
    assert batch.targets is not None and batch.targets.tolist() == [1, 1]


def test_a_batch_is_padded_to_its_longest_row(tokenizer: Tokenizer) -> None:
    examples = [Example(("Ann sang in Rome", "Bob"), 2.5), Example(("Ann", "Bob"), 0.0)]
    batch = batch_of(features_of(TASKS["sts-b"], examples, tokenizer, 32).rows)
    length = len(ids(tokenizer, "Ann")) + len(ids(tokenizer, "Bob")) + 3
    assert batch.segment_ids[1].tolist() == [1] * length + [0] * (batch.token_ids.shape[1] - length)
    assert not batch.token_ids[1, length:].any()
    assert batch.targets is not None
    assert (batch.targets.dtype, batch.targets.tolist()) == (np.float32, [2.5, 0.0])


def test_a_split_without_labels_has_no_targets(tokenizer: Tokenizer) -> None:
    assert batch_of(features_of(TASKS["sst-2"], [Example(("Ann",))], tokenizer, 32).rows).targets is None


def test_the_first_piece_of_each_word_is_labelled(tokenizer: Tokenizer) -> None:
    example = Example(("Ann", "xylophone", "\u200b", "Rome"), ("B-PER", "O", "O", "B-LOC"))
    (row,) = features_of(TASKS["conll-2003"], [example], tokenizer, 64).rows
    names = TASKS["conll-2003"].labels.names
    assert isinstance(row.target, np.ndarray)
    labelled = np.flatnonzero(row.target != IGNORED)
    assert [names[n] for n in row.target[labelled]] == list(example.label or ())
    assert labelled[0] == 1
    assert row.sequences[0][labelled[1] :].tolist()[: len(ids(tokenizer, "xylophone"))] == ids(tokenizer, "xylophone")
    assert row.sequences[0][labelled[3]] == ids(tokenizer, "Rome")[0]


def sentences(*groups: str | None) -> list[Example]:
    return [Example(tuple(WORDS), ("O",) * len(WORDS), group=group) for group in groups]


@pytest.mark.parametrize(
    ("groups", "num_rows"), [(("1", "1"), 1), (("1", "2"), 2), ((None, None), 2), (("1", "1", "1"), 2)]
)
def test_sentences_of_a_document_share_rows_while_they_fit(
    tokenizer: Tokenizer, groups: Sequence[str | None], num_rows: int
) -> None:
    length = sum(len(ids(tokenizer, word)) for word in WORDS)
    rows = features_of(TASKS["conll-2003"], sentences(*groups), tokenizer, 2 * length + 2).rows
    assert len(rows) == num_rows


def test_sentences_longer_than_a_row_go_on_in_the_next(tokenizer: Tokenizer) -> None:
    examples = sentences("1", "1")
    features = features_of(TASKS["conll-2003"], examples, tokenizer, 12)
    assert all(len(row.sequences[0]) <= 12 for row in features.rows)
    assert "2 of 2 sentences are longer than 12 tokens" in features.notes[0]
    found = sorted((number, word) for row in features.rows for _, number, word in row.words)
    assert found == [(number, word) for number in (0, 1) for word in range(len(WORDS))]


def test_words_get_the_label_of_their_first_piece(tokenizer: Tokenizer) -> None:
    task, examples = TASKS["conll-2003"], sentences("1", "1", "2")
    rows = features_of(task, examples, tokenizer, 12).rows
    logits = [np.zeros((len(row.sequences[0]), len(task.labels.names))) for row in rows]
    for row, scores in zip(rows, logits, strict=True):
        scores[:, 0] = 1
        for place, number, word in row.words:
            scores[place, 1 + (number + word) % 8] = 2
    expected = [tuple(task.labels.names[1 + (n + word) % 8] for word in range(len(WORDS))) for n in range(3)]
    assert [prediction.value for prediction in word_predictions(task.labels, examples, rows, logits)] == expected


def test_the_label_is_the_largest_output_and_the_score_its_log_odds() -> None:
    labels = TASKS["mnli"].labels
    first, second = label_predictions(labels, np.log([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
    assert (first.value, second.value) == ("neutral", "entailment")
    assert first.score == pytest.approx(np.log(0.3 / 0.7))
    assert [p.value for p in label_predictions(TASKS["sts-b"].labels, np.array([[1.5], [2.0]]))] == [1.5, 2.0]


def question(answer: str, place: int | None = None) -> Example:
    begin = CONTEXT.index(answer) if place is None else place
    return Example(("who sang in Rome", CONTEXT), (begin, begin + len(answer)), "q", answers=(answer,))


def test_every_token_of_a_context_is_in_a_row_and_the_answer_where_all_of_it_is(tokenizer: Tokenizer) -> None:
    features = features_of(TASKS["squad-1.1"], [question("the old king")], tokenizer, 48, stride_tokens=16)
    rows, context = features.rows, ids(tokenizer, CONTEXT)
    assert len(rows) > 2 and f"they make {len(rows)} rows" in features.notes[0]
    shown = np.zeros(len(CONTEXT), dtype=bool)
    for number, row in enumerate(rows):
        assert row.context is not None and len(row.sequences[0]) <= 48
        first, offsets = row.context
        assert row.sequences[0][first:-1].tolist() == context[16 * number :][: len(offsets)]
        for begin, end in offsets:
            shown[begin:end] = True
        if row.target != (0, 0):
            assert isinstance(row.target, tuple)
            start, end = (place - first for place in row.target)
            assert CONTEXT[offsets[start, 0] : offsets[end, 1]] == "the old king"
    assert "".join(c for c, there in zip(CONTEXT, shown, strict=True) if not there).strip() == ""
    assert rows[0].target != (0, 0) and rows[-1].target == (0, 0)


@pytest.mark.parametrize("first", range(0, 60, 4))
def test_rows_that_show_a_part_of_the_answer_point_at_cls(tokenizer: Tokenizer, first: int) -> None:
    words = CONTEXT.split()
    example = question(" ".join(words[first : first + 5]), len(" ".join([*words[:first], ""])))
    rows = features_of(TASKS["squad-1.1"], [example], tokenizer, 48, stride_tokens=16).rows
    assert isinstance(example.label, tuple)
    for row in rows:
        assert row.context is not None and isinstance(row.target, tuple)
        offsets = row.context.offsets
        shows_all = offsets[0, 0] <= example.label[0] and offsets[-1, 1] >= example.label[1]
        assert (row.target != (0, 0)) == shows_all
        assert row.target[1] < len(row.sequences[0]) - 1
    assert any(row.target != (0, 0) for row in rows)


def test_a_question_without_an_answer_points_at_cls(tokenizer: Tokenizer) -> None:
    example = Example(("who", CONTEXT), NO_ANSWER, "q")
    rows = features_of(TASKS["squad-2.0"], [example], tokenizer, 48, stride_tokens=16).rows
    assert {row.target for row in rows} == {(0, 0)}


def scores_for(row: Row, *spans: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = np.full(len(row.sequences[0]), -5.0), np.full(len(row.sequences[0]), -5.0)
    for first, last, score in spans:
        starts[first], ends[last] = max(starts[first], score), max(ends[last], score)
    return starts, ends


def test_the_best_answer_of_all_rows_is_cut_from_the_context(tokenizer: Tokenizer) -> None:
    """With its own signs and spaces, whatever the tokenizer makes of these."""
    context = CONTEXT + " the  ﬁne\u00a0king rained"
    begin = context.index("ﬁne")
    example = Example(("who sang in Rome", context), (begin, begin + 8), "q")
    rows = features_of(TASKS["squad-2.0"], [example], tokenizer, 48, stride_tokens=16).rows
    logits = [scores_for(row, (0, 0, 1.0), (8, 9, 2.0)) for row in rows]
    where = max(number for number, row in enumerate(rows) if row.target != (0, 0))
    target = rows[where].target
    assert isinstance(target, tuple)
    logits[0] = scores_for(rows[0], (0, 0, 0.5))
    logits[where] = scores_for(rows[where], (0, 0, 3.0), (*target, 4.0))
    (found,) = span_predictions([example], rows, [s for s, _ in logits], [e for _, e in logits])
    assert found.value == "ﬁne\u00a0king"
    assert found.score == pytest.approx(2 * 0.5 - 2 * 4.0)


def test_answers_neither_end_before_they_begin_nor_go_on_for_ever_nor_are_in_the_question(tokenizer: Tokenizer) -> None:
    (row,) = features_of(TASKS["squad-1.1"], [question("Rome")], tokenizer, 256).rows
    assert row.context is not None
    first = row.context.first_place
    likely = [(1, 2, 9.0), (first + 5, first + 4, 8.0)]
    starts, ends = scores_for(row, *likely, (first + 7, first + 8, 3.0))
    (found,) = span_predictions([question("Rome")], [row], [starts], [ends])
    assert found.value == CONTEXT[row.context.offsets[5, 0] : row.context.offsets[8, 1]]
    starts, ends = scores_for(row, (first, first + MAX_ANSWER_TOKENS, 9.0), (first + 2, first + 3, 3.0))
    (found,) = span_predictions([question("Rome")], [row], [starts], [ends])
    assert found.score == pytest.approx(-10.0 - (9.0 + 3.0))


def test_lengths_and_strides_that_would_lose_text_or_do_nothing(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="stride_tokens 40: must be from 1 to 33 with max_length 48"):
        features_of(TASKS["squad-1.1"], [question("Rome")], tokenizer, 48, stride_tokens=40)
    with pytest.raises(ValueError, match="stride_tokens 16 has no effect on sst-2"):
        features_of(TASKS["sst-2"], [Example(("a",), "0")], tokenizer, 48, stride_tokens=16)
    with pytest.raises(ValueError, match="max_length 3: too short"):
        features_of(TASKS["sst-2"], [Example(("a",), "0")], tokenizer, 3)
