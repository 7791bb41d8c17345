"""Records of SQuAD, RACE, SWAG and CoNLL → examples. Those that begin with `saved_` are for rows of `datasets`."""

from collections.abc import Iterator
from dataclasses import replace

from deberta_scale.finetune.readers import NO_ANSWER, Example, Labels, LeftOut, ReadError, Record
from deberta_scale.finetune.readers_files import DOCUMENT_START


def squad(record: Record, labels: Labels) -> Iterator[Example | LeftOut]:
    """Question and context; the first answer is the one to train on."""
    context = record.text("context")
    for question in record.parts("qas"):
        answers = []
        if labels.required or "answers" in question.values:
            answers = [(answer.text("text"), answer.integer("answer_start")) for answer in question.parts("answers")]
        may_be_empty = not labels.required or question.values.get("is_impossible") is True
        if not answers and not may_be_empty:
            raise ReadError(f"{question.where}: no answer, and it is not said to be impossible")
        yield _question(question, (question.text("question"), context), answers)


def saved_squad(record: Record, labels: Labels) -> Iterator[Example | LeftOut]:
    found = record.inside("answers")
    answers = list(zip(found.list_of("text", str), found.list_of("answer_start", int), strict=True))
    yield _question(record, (record.text("question"), record.text("context")), answers)


def _question(record: Record, texts: tuple[str, str], answers: list[tuple[str, int]]) -> Example | LeftOut:
    label = NO_ANSWER
    if answers:
        text, begin = answers[0]
        label = (begin, begin + len(text))
        if not text or begin < 0 or texts[1][slice(*label)] != text:
            return LeftOut(record.where, "the answer does not stand in the context where answer_start says")
    return Example(texts, label, id=record.text("id"), answers=tuple(dict.fromkeys(text for text, _ in answers)))


def race(record: Record, labels: Labels) -> Iterator[Example]:
    """Four choices a question, each a pair: the passage; question and option."""
    questions, options = record.list_of("questions", str), record.list_of("options", list)
    answers = record.list_of("answers", str) if labels.required or "answers" in record.values else [""] * len(questions)
    if not len(questions) == len(options) == len(answers):
        raise ReadError(f"{record.where}: there are not as many options, or answers, as questions")
    for n, question in enumerate(questions):
        values = {"article": record.get("article"), "question": question, "options": options[n], "answer": answers[n]}
        for example in saved_race(Record(record.path, f"{record.place}, question {n}", values), labels):
            yield replace(example, id=f"{record.text('id')}-{n}")


def saved_race(record: Record, labels: Labels) -> Iterator[Example]:
    """A row is a question; its `example_id` is that of the passage, so that it names no example."""
    passage, question, options = record.text("article"), record.text("question"), record.list_of("options", str)
    if len(options) != len(labels.names):
        raise ReadError(f"{record.where}: {len(options)} options; there must be {len(labels.names)}")
    choices = tuple((passage, f"{question} {option}") for option in options)
    yield Example((), labels.of(record, "answer"), choices=choices)


def swag(record: Record, labels: Labels) -> Iterator[Example]:
    """Four choices, each a pair: a sentence; the beginning of the next and an ending of it."""
    first, beginning = record.text("sent1"), record.text("sent2")
    choices = tuple((first, f"{beginning} {record.text(f'ending{n}')}") for n in range(4))
    yield Example((), labels.of(record, "label"), id=str(record.values.get("", "")), choices=choices)


def conll(record: Record, labels: Labels) -> Iterator[Example | LeftOut]:
    """The words of a sentence with their tags, begin-inside-outside whichever of its two spellings the file has.
    Sentences of a document are a group; rows of `datasets` know no documents."""
    words, tags = record.list_of("tokens", str), record.list_of("ner_tags", str)
    if words[:1] == [DOCUMENT_START]:
        yield LeftOut(record.where, f"marks the start of a document ({DOCUMENT_START})")
        return
    if not words or len(words) != len(tags):
        raise ReadError(f"{record.where}: {len(words)} words and {len(tags)} tags; there must be as many, and one")
    document = record.values.get("document")
    label = tuple(labels.checked(tag, record) for tag in with_beginnings(tags))
    yield Example(tuple(words), label, group=None if document is None else str(document))


def with_beginnings(tags: list[str]) -> list[str]:
    """Every entity begun by B-: the original files say so only where two of a kind touch (IOB1 → IOB2)."""
    before = ["O", *tags]
    return [
        f"B-{tag[2:]}" if tag.startswith("I-") and (last == "O" or last[2:] != tag[2:]) else tag
        for last, tag in zip(before, tags, strict=False)
    ]
