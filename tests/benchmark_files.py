"""Small training and validation files of every benchmark, in its own format, for the tests of fine-tuning."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TRAINING, VALIDATION = range(8), range(8, 13)
"""Numbers of the facts that the examples are about, so that no example is in both."""


class Fact(NamedTuple):
    """What a few sentences are about; half of them are told rightly."""

    number: int
    name: str
    shop: str
    town: str

    @property
    def is_right(self) -> bool:
        return self.number % 2 == 0

    @property
    def bit(self) -> int:
        return int(self.is_right)

    @property
    def text(self) -> str:
        return f"{self.name} opened a {self.shop} in {self.town}."

    @property
    def claim(self) -> str:
        return f"{self.name} has a {self.shop if self.is_right else 'boat'}."

    @property
    def entailment(self) -> str:
        return "entailment" if self.is_right else "not_entailment"

    @property
    def in_three_classes(self) -> str:
        return ("entailment", "neutral", "contradiction")[self.number % 3]


def fact(number: int) -> Fact:
    name = ("Anne Berg", "Tom Hill", "Maria Silva", "John Reed", "Ines Costa")[number % 5]
    shop = ("bakery", "school", "theatre", "library")[number % 4]
    return Fact(number, name, shop, ("Oslo", "Rome", "Paris", "London", "Vienna", "Bath", "Cairo")[number % 7])


Row = Mapping[str, Any]
Files = dict[str, str]
"""Contents by name."""


def _tsv(rows: Iterable[Row]) -> str:
    lines = [list(row.values()) for row in rows]
    header = [*next(iter(rows))]
    return "".join("\t".join(map(str, line)) + "\n" for line in (header, *lines))


def _csv(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*next(iter(rows))], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json_lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _sst_2(of: Fact) -> Row:
    return {"sentence": f"{of.name} is {'superb' if of.is_right else 'dull'} in this film ", "label": of.bit}


def _mrpc(of: Fact) -> Row:
    strings = {"#1 String": of.text, "#2 String": of.claim}
    return {"Quality": of.bit, "#1 ID": 100 + of.number, "#2 ID": 200 + of.number, **strings}


def _sts_b(of: Fact) -> Row:
    source = {"genre": "main-news", "filename": "headlines", "year": 2013, "old_index": of.number}
    sentences = {"source1": "none", "source2": "none", "sentence1": of.text, "sentence2": of.claim}
    return {"index": of.number, **source, **sentences, "score": f"{of.number % 6:.3f}"}


def _qqp(of: Fact) -> Row:
    questions = {"question1": f"Where is {of.town}?", "question2": f"Where does {of.name} live?"}
    return {"id": of.number, "qid1": 2 * of.number, "qid2": 2 * of.number + 1, **questions, "is_duplicate": of.bit}


def _mnli(of: Fact, num_annotators: int) -> Row:
    parses = {f"sentence{n}_{kind}": "( ROOT )" for kind in ("binary_parse", "parse") for n in (1, 2)}
    labels = {f"label{n}": of.in_three_classes for n in range(1, num_annotators + 1)}
    described = {"index": of.number, "promptID": of.number, "pairID": f"{of.number}n", "genre": "fiction", **parses}
    return {**described, "sentence1": of.text, "sentence2": of.claim, **labels, "gold_label": of.in_three_classes}


def _qnli(of: Fact) -> Row:
    question = f"Where is the {of.shop}?"
    return {"index": of.number, "question": question, "sentence": of.text, "label": of.entailment}


def _rte(of: Fact) -> Row:
    return {"index": of.number, "sentence1": of.text, "sentence2": of.claim, "label": of.entailment}


def _wnli(of: Fact) -> Row:
    return _rte(of) | {"label": of.bit}


def _boolq(of: Fact) -> Row:
    question = f"is the {of.shop} in {of.town}"
    return {"question": question, "passage": of.text, "idx": of.number, "label": of.is_right}


def _cb(of: Fact) -> Row:
    return {"premise": of.text, "hypothesis": of.claim, "label": of.in_three_classes, "idx": of.number}


def _superglue_rte(of: Fact) -> Row:
    return {"premise": of.text, "hypothesis": of.claim, "label": of.entailment, "idx": of.number}


def _copa(of: Fact) -> Row:
    choices = {"choice1": f"The {of.shop} was full.", "choice2": f"{of.name} fell asleep."}
    asked = {"question": ("cause", "effect")[of.number // 2 % 2], "idx": of.number, "label": of.bit}
    return {"premise": of.text, **choices, **asked}


def _multirc(of: Fact) -> Row:
    answers = [{"text": text, "idx": n, "label": int(text == of.town)} for n, text in enumerate((of.town, "Lima"))]
    questions = [{"question": f"Where is the {of.shop}?", "sentences_used": [0], "idx": of.number, "answers": answers}]
    return {"idx": of.number, "version": 1.1, "passage": {"text": of.text, "questions": questions}}


def _record(of: Fact) -> Row:
    text = f"{of.text}\n@highlight\nMany came to {of.town}"
    entities = [_place_of(of.name, text), _place_of(of.town, text)]
    answers = [{**_place_of(of.town, text), "text": of.town}]
    qas = [{"query": f"The {of.shop} is in @placeholder", "answers": answers, "idx": of.number}]
    return {"source": "Daily mail", "passage": {"text": text, "entities": entities}, "qas": qas, "idx": of.number}


def _place_of(words: str, text: str) -> dict[str, int]:
    """As ReCoRD says it: the end is the last character."""
    first = text.index(words)
    return {"start": first, "end": first + len(words) - 1}


def _wic(of: Fact) -> Row:
    sentences = {"sentence1": of.text, "sentence2": f"The {of.shop} is closed."}
    places = {}
    for n, sentence in enumerate(sentences.values(), start=1):
        first = sentence.index(of.shop)
        places |= {f"start{n}": first, f"end{n}": first + len(of.shop)}
    return {"word": of.shop, **sentences, "idx": of.number, "label": of.is_right, **places, "version": 1.1}


def _wsc(of: Fact) -> Row:
    target = {"span1_index": 0, "span1_text": of.name, "span2_index": 9, "span2_text": "he"}
    return {"target": target, "text": f"{of.text} All think he was right.", "idx": of.number, "label": of.is_right}


def _swag(of: Fact) -> Row:
    endings = {f"ending{n}": end for n, end in enumerate(("waits.", "sings, then leaves.", 'says "yes".', "runs."))}
    video = {"": of.number, "video-id": f"v{of.number}", "fold-ind": of.number, "startphrase": f"{of.text} She"}
    return {**video, "sent1": of.text, "sent2": "She", "gold-source": "gold", **endings, "label": of.number % 4}


def _squad(of: Fact, version: str) -> Row:
    """Every second question has no answer in version 2.0."""
    answers = [{"text": of.town, "answer_start": of.text.index(of.town)}]
    question: dict[str, Any] = {"id": f"q{of.number}", "question": f"Where is the {of.shop}?", "answers": answers}
    if version == "2.0":
        question["is_impossible"] = not of.is_right
        if not of.is_right:
            question |= {"question": "When was it closed?", "answers": [], "plausible_answers": answers}
    return {"context": of.text, "qas": [question]}


def _race(of: Fact) -> Row:
    options = [[of.town, "Lima", "Delhi", "Quito"], ["a baker", "a king", of.name, "nobody"]]
    questions = [f"The {of.shop} is in _ .", f"Who opened the {of.shop}?"]
    return {"answers": ["A", "C"], "options": options, "questions": questions, "article": of.text}


def _conll(of: Fact) -> str:
    """A sentence in the spelling of the first release."""
    first, last = of.name.split()
    words = [(first, "NNP", "I-PER"), (last, "NNP", "I-PER"), ("opened", "VBD", "O"), ("a", "DT", "O")]
    words += [(of.shop, "NN", "O"), ("in", "IN", "O"), (of.town, "NNP", "I-LOC"), (".", ".", "O")]
    return "".join(f"{word} {part} I-NP {tag}\n" for word, part, tag in words)


_GLUE = {"sst-2": _sst_2, "mrpc": _mrpc, "sts-b": _sts_b, "qqp": _qqp, "qnli": _qnli, "rte": _rte, "wnli": _wnli}
_SUPERGLUE: Mapping[str, Callable[[Fact], Row]] = {
    "boolq": _boolq,
    "cb": _cb,
    "copa": _copa,
    "multirc": _multirc,
    "record": _record,
    "superglue-rte": _superglue_rte,
    "wic": _wic,
    "wsc": _wsc,
}


def _cola_files(facts: list[Fact], split: str) -> Files:
    """Without a header."""
    rows = [
        ("gj04", of.bit, "" if of.is_right else "*", of.text if of.is_right else f"{of.name} open.") for of in facts
    ]
    return {f"{_in_glue(split)}.tsv": "".join("\t".join(map(str, row)) + "\n" for row in rows)}


def _mnli_files(facts: list[Fact], split: str) -> Files:
    """Two splits to validate, of which the second has an example less."""
    if split == "train":
        return {"train.tsv": _tsv([_mnli(of, num_annotators=1) for of in facts])}
    rows = [_mnli(of, num_annotators=5) for of in facts]
    return {"dev_matched.tsv": _tsv(rows), "dev_mismatched.tsv": _tsv(rows[1:])}


def _squad_files(facts: list[Fact], split: str, version: str) -> Files:
    article = {"title": "Shops", "paragraphs": [_squad(of, version) for of in facts]}
    return {f"{_in_glue(split)}-v{version}.json": json.dumps({"version": version, "data": [article]})}


def _race_files(facts: list[Fact], split: str) -> Files:
    names = [f"{('middle', 'high')[of.number % 2]}/{of.number}.txt" for of in facts]
    rows = [_race(of) | {"id": name.replace("/", "")} for name, of in zip(names, facts, strict=True)]
    return {f"{_in_glue(split)}/{name}": json.dumps(row) for name, row in zip(names, rows, strict=True)}


def _conll_files(facts: list[Fact], split: str) -> Files:
    """Two sentences of a document, then another one."""
    start = "-DOCSTART- -X- O O\n"
    sentences = [start, *map(_conll, facts[:2]), start, *map(_conll, facts[2:])]
    return {"eng.train" if split == "train" else "eng.testa": "\n".join(sentences)}


def _in_glue(split: str) -> str:
    return "train" if split == "train" else "dev"


def _files(task_name: str, facts: list[Fact], split: str) -> Files:
    if task_name in _GLUE:
        return {f"{_in_glue(split)}.tsv": _tsv([_GLUE[task_name](of) for of in facts])}
    if task_name in _SUPERGLUE:
        name = "train" if split == "train" else "val"
        return {f"{name}.jsonl": _json_lines(_SUPERGLUE[task_name](of) for of in facts)}
    if task_name == "swag":
        return {"train.csv" if split == "train" else "val.csv": _csv([_swag(of) for of in facts])}
    if task_name.startswith("squad-"):
        return _squad_files(facts, split, task_name.removeprefix("squad-"))
    others = {"cola": _cola_files, "mnli": _mnli_files, "race": _race_files, "conll-2003": _conll_files}
    return others[task_name](facts, split)


def write_benchmark(task_name: str, folder: Path) -> None:
    """Eight records to train on and five to validate, in files of the names that the benchmark gives them."""
    for split, numbers in (("train", TRAINING), ("validation", VALIDATION)):
        for name, content in _files(task_name, [*map(fact, numbers)], split).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
