"""How exact is the exported tokenizer? `compare_tokenizers.py DIR --input PATH...`

Cuts the same texts with the tokenizer of training and with tokenizer.json, which stock `transformers` reads, once as
whole documents and once as paragraphs (training cuts paragraphs), and counts and explains the texts whose ids differ:

tie               both cuts have the same score; rounding decides which one wins
single precision  sentencepiece's sum of scores, in 32 bits, ran out of digits: long texts without a line break
combining marks   marks out of canonical order, which tokenizer.json puts in order first
special piece     the text spells [CLS] or its like: a token to `transformers`, text in training
other             none of these
"""

import argparse
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.command import positive_int, report, run
from data_prep.inputs import InputError, add_input_arguments, documents, find_inputs, plan_units, reading_of
from deberta_scale.convert.tokenizer_files import FAST_FILE, fast_tokenizer
from deberta_scale.data.tokenizer import MASK_PIECE, SPECIAL_PIECES, Tokenizer

_EXAMPLES_OF_EACH = 3
_EXACT = 1e-6
"""Nats: below this, scores added in 64 bits are equal."""
_TEXTS_AT_ONCE = 256


def compare(tokenizer: Tokenizer, fast: Any, texts: list[str]) -> dict[str, Any]:
    """Counts of texts, tokens, and texts whose ids differ by class, with a few examples of each class."""
    tokens = differing_tokens = 0
    classes: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    remaining = iter(texts)
    while batch := list(islice(remaining, _TEXTS_AT_ONCE)):
        encoded = fast.encode_batch_fast(batch, add_special_tokens=False)
        for text, ours, other in zip(batch, tokenizer.encode(batch), encoded, strict=True):
            tokens += len(ours)
            theirs = np.array(other.ids, dtype=np.int32)
            if np.array_equal(ours, theirs):
                continue
            why = explain(tokenizer, text, ours, theirs)
            classes[why] += 1
            differ = _differing(*([tokenizer.piece(t) for t in ids] for ids in (ours, theirs)))
            differing_tokens += len(differ)
            if classes[why] <= _EXAMPLES_OF_EACH:
                shown = slice(differ[0], differ[0] + 6)
                pieces = [" ".join(map(tokenizer.piece, ids[shown])) for ids in (ours, theirs)]
                examples.append({"why": why, "tokens": len(ours), "training": pieces[0], "exported": pieces[1]})
    return {
        "texts": len(texts),
        "tokens": tokens,
        "differ": sum(classes.values()),
        "differing_tokens": differing_tokens,
        "classes": dict(classes),
        "examples": examples,
    }


def explain(tokenizer: Tokenizer, text: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    """The class, as the module describes them, of a text whose ids differ."""
    if any(piece in text for piece in (*SPECIAL_PIECES, MASK_PIECE)):
        return "special piece"
    ordered = unicodedata.normalize("NFC", text)
    if ordered != text and np.array_equal(tokenizer.encode([ordered])[0], theirs):
        return "combining marks"
    spellings = ["".join(map(tokenizer.piece, ids)) for ids in (ours, theirs)]
    if tokenizer.kind != "sentencepiece" or spellings[0] != spellings[1]:
        return "other"
    score, other = (sum(map(tokenizer.processor.get_score, ids.tolist())) for ids in (ours, theirs))
    if abs(other - score) <= _EXACT:
        return "tie"
    digit = float(np.spacing(np.float32(abs(score))))
    return "single precision" if 0 < other - score <= digit * len(ours) else "other"


def _differing(ours: list[str], theirs: list[str]) -> list[int]:
    """The places of our pieces that do not stand at the same characters of their cut; at least one."""
    ends = [np.cumsum([0, *map(len, pieces)]).tolist() for pieces in (ours, theirs)]
    found = {(start, piece) for start, piece in zip(ends[1], theirs, strict=False)}
    places = [place for place, span in enumerate(zip(ends[0], ours, strict=False)) if span not in found]
    return places or [min(len(ours), len(theirs))]


def _read(arguments: argparse.Namespace) -> list[list[str]]:
    """Every so many documents of the input, as paragraphs."""
    reading = reading_of(arguments)
    units = plan_units(find_inputs(arguments.input), reading, 2**30)
    everything: Iterator[list[str]] = chain.from_iterable(documents(part, reading) for unit in units for part in unit)
    chosen = list(islice(everything, 0, arguments.documents * arguments.every, arguments.every))
    found = [document for document in chosen if document]
    if not found:
        raise InputError(f"{arguments.input[0]}: no text in it, nothing to compare")
    return found


def _lines(name: str, facts: dict[str, Any]) -> list[str]:
    classes = ", ".join(f"{count} {why}" for why, count in facts["classes"].items()) or "none"
    lines = [
        f"{name}: {facts['differ']:,} of {facts['texts']:,} differ ({facts['differ'] / facts['texts']:.4%}), and"
        f" {facts['differing_tokens']:,} of {facts['tokens']:,} tokens: {classes}"
    ]
    for example in facts["examples"]:
        lines.append(
            f"  {example['why']}, in {example['tokens']:,} tokens: training {example['training']} | exported"
            f" {example['exported']}"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a tokenizer or exported directory")
    add_input_arguments(parser)
    parser.add_argument(
        "--documents", type=positive_int, default=2000, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--every", type=positive_int, default=1, metavar="K", help="take each K-th document (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    def work() -> None:
        directory = arguments.directory
        tokenizer = Tokenizer.load(directory)
        written = (directory / FAST_FILE).is_file()
        content = (directory / FAST_FILE).read_text(encoding="utf-8") if written else fast_tokenizer(tokenizer)
        from tokenizers import Tokenizer as FastTokenizer  # after what explains that it is missing

        fast = FastTokenizer.from_str(content)
        found = _read(arguments)
        if not arguments.json:
            compared = directory / FAST_FILE if written else f"the {FAST_FILE} an export of it would have"
            print(f"comparing {directory} with {compared} on {len(found):,} documents", flush=True)
        facts = {
            "documents": compare(tokenizer, fast, ["\n".join(document) for document in found]),
            "paragraphs": compare(tokenizer, fast, list(chain.from_iterable(found))),
        }
        lines = [line for name in facts for line in _lines(name, facts[name])]
        report(arguments.json, {"directory": str(directory), **facts}, lines)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
