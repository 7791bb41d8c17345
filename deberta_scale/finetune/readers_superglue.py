"""Records of SuperGLUE → examples: the tasks that are more than one text, or two, and a label.

Forms are for the benchmark's own JSON lines; those that begin with `saved_` are for the flat rows of `datasets`.
"""

from collections.abc import Iterator

from deberta_scale.finetune.readers import Example, Labels, LeftOut, ReadError, Record

HIGHLIGHT, PLACEHOLDER = "@highlight", "@placeholder"


def copa(record: Record, labels: Labels) -> Iterator[Example]:
    """Two choices, each a pair: the cause first, then its effect, as the official code has them."""
    premise, question = record.text("premise"), record.text("question")
    if question not in ("cause", "effect"):
        raise ReadError(f"{record.where}: the question is {question!r}; it must be 'cause' or 'effect'")
    found = [record.text("choice1"), record.text("choice2")]
    choices = tuple((choice, premise) if question == "cause" else (premise, choice) for choice in found)
    yield Example((), labels.of(record, "label"), id=_number(record), choices=choices)


def wic(record: Record, labels: Labels) -> Iterator[Example]:
    """A pair of sentences, the word of question between asterisks in both."""
    texts = []
    for n in ("1", "2"):
        text, begin, end = record.text("sentence" + n), record.integer("start" + n), record.integer("end" + n)
        if not 0 <= begin < end <= len(text):
            raise ReadError(f"{record.where}: start{n} {begin} and end{n} {end} are no place in sentence{n}")
        texts.append(f"{text[:begin]}*{text[begin:end]}*{text[end:]}")
    yield Example(tuple(texts), labels.of(record, "label"), id=_number(record))


def wsc(record: Record, labels: Labels) -> Iterator[Example]:
    """One text: the noun phrase between asterisks, the pronoun between number signs."""
    return _wsc(record, record.inside("target"), labels)


def saved_wsc(record: Record, labels: Labels) -> Iterator[Example]:
    return _wsc(record, record, labels)


def _wsc(record: Record, target: Record, labels: Labels) -> Iterator[Example]:
    words = record.text("text").split()
    for span, sign in (("span1", "*"), ("span2", "#")):
        first = target.integer(span + "_index")
        last = first + len(target.text(span + "_text").split()) - 1
        if not 0 <= first <= last < len(words):
            raise ReadError(
                f"{target.where}: {span}_index {first} is no place among the {len(words)} words of the text"
            )
        words[first], words[last] = sign + words[first], (sign + words[last] if first == last else words[last]) + sign
    yield Example((" ".join(words),), labels.of(record, "label"), id=_number(record))


def multirc(record: Record, labels: Labels) -> Iterator[Example]:
    """A pair for each answer: the passage; question and answer. Those of a question are a group."""
    passage = record.inside("passage")
    for question in passage.parts("questions"):
        for answer in question.parts("answers"):
            numbers = (record.integer("idx"), question.integer("idx"), answer.integer("idx"))
            texts = (passage.text("text"), f"{question.text('question')} {answer.text('text')}")
            yield _answer(texts, labels.of(answer, "label"), numbers)


def saved_multirc(record: Record, labels: Labels) -> Iterator[Example]:
    where = record.inside("idx")
    numbers = (where.integer("paragraph"), where.integer("question"), where.integer("answer"))
    texts = (record.text("paragraph"), f"{record.text('question')} {record.text('answer')}")
    yield _answer(texts, labels.of(record, "label"), numbers)


def _answer(texts: tuple[str, str], label: str | float | None, numbers: tuple[int, int, int]) -> Example:
    passage, question, answer = numbers
    return Example(texts, label, id=f"{passage}-{question}-{answer}", group=f"{passage}-{question}")


def record_entities(record: Record, labels: Labels) -> Iterator[Example | LeftOut]:
    """ReCoRD: a pair for each entity of the passage: the passage; the query with the entity in the gap. Those of a
    query are a group; entities that are spelled the same are one."""
    passage = record.inside("passage")
    text = passage.text("text")
    entities = [_entity(entity, text) for entity in passage.parts("entities")]
    for query in record.parts("qas"):
        answers = None
        if labels.required or "answers" in query.values:
            answers = [answer.text("text") for answer in query.parts("answers")]
        yield from _query(query, (text, query.text("query")), entities, answers, str(query.integer("idx")))


def _entity(record: Record, text: str) -> str:
    """The released files have a few that are empty."""
    last = record.integer("end")
    if last >= len(text):
        raise ReadError(f"{record.where}: the entity ends at {last}, the passage has {len(text)} characters")
    return text[record.integer("start") : last + 1]


def saved_record_entities(record: Record, labels: Labels) -> Iterator[Example | LeftOut]:
    answers = record.list_of("answers", str) or None
    if answers is None and labels.required:
        raise ReadError(f"{record.where}: 'answers' is empty; a query of a split with labels must have one")
    numbers = record.inside("idx")
    texts = (record.text("passage"), record.text("query"))
    yield from _query(record, texts, record.list_of("entities", str), answers, str(numbers.integer("query")))


def _query(
    record: Record, texts: tuple[str, str], entities: list[str], answers: list[str] | None, number: str
) -> Iterator[Example | LeftOut]:
    passage, query = texts
    if PLACEHOLDER not in query:
        raise ReadError(f"{record.where}: the query has no {PLACEHOLDER}")
    passage = passage.replace(f"\n{HIGHLIGHT}\n", "\n")
    candidates = [entity for entity in dict.fromkeys(entities) if entity]
    if not candidates:
        yield LeftOut(record.where, "the passage has no entity to choose from")
    for n, entity in enumerate(candidates):
        yield Example(
            (passage, query.replace(PLACEHOLDER, entity)),
            None if answers is None else str(int(entity in answers)),
            id=f"{number}-{n}",
            group=number,
            answers=tuple(dict.fromkeys(answers or ())),
            candidate=entity,
        )


def _number(record: Record) -> str:
    return str(record.values.get("idx", ""))
