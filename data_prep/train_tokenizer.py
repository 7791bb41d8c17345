"""Train a sentencepiece unigram tokenizer: `train_tokenizer.py --input PATH... --vocab-size N --out DIR`.

Writes DIR/spm.model and DIR/metadata.json. The ids are those of the released V2/V3 tokenizers: [PAD] 0, [CLS] 1,
[SEP] 2, [UNK] 3, then the bytes that stand in for unknown characters, then the pieces; [MASK] is N, after the last.
"""

import argparse
import hashlib
import heapq
import io
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from data_prep.command import positive_int, report, run
from data_prep.inputs import (
    InputError,
    InputFile,
    Reading,
    add_input_arguments,
    documents,
    find_inputs,
    in_short,
    plan_units,
    reading_of,
)
from deberta_scale.data.tokenizer import (
    CLS_ID,
    PAD_ID,
    SEP_ID,
    SPECIAL_PIECES,
    UNK_ID,
    Tokenizer,
)
from deberta_scale.durable import published_directory

DEFAULT_MAX_INPUT_BYTES = 200_000_000
DEFAULT_CHARACTER_COVERAGE = 0.9999
_NUM_THREADS = 8
"""Fixed, since the order of sums, and so the pieces, may depend on it."""
_NO_LIMIT = 2**30
"""Of bytes in a paragraph: sentencepiece would silently leave out those over 4192."""


class VocabularySizeError(ValueError):
    """A vocabulary size that the text does not allow."""


def train(
    files: list[InputFile],
    reading: Reading,
    vocab_size: int,
    out: Path,
    *,
    max_input_bytes: int = DEFAULT_MAX_INPUT_BYTES,
    character_coverage: float = DEFAULT_CHARACTER_COVERAGE,
    verbose: bool = False,
) -> dict[str, Any]:
    """Train on (a sample of) the text and publish the tokenizer directory. Returns its metadata.

    The sample takes paragraphs from everywhere in the input, up to `max_input_bytes` of text; it and the result are
    the same in every run. Raises InputError, VocabularySizeError, or ValueError when `out` is in use.
    """
    with published_directory(out) as partial:
        paragraphs = sample(_paragraphs(files, reading), max_input_bytes)
        if not paragraphs:
            raise InputError(f"{in_short(files)}: no text in it, nothing to train on")
        model = _train_model(paragraphs, vocab_size, character_coverage, verbose)
        training = {
            "model_type": "unigram",
            "byte_fallback": True,
            "character_coverage": character_coverage,
            "max_input_bytes": max_input_bytes,
            "inputs": [file.name for file in files],
            "paragraphs": len(paragraphs),
            "bytes": sum(len(paragraph.encode()) for paragraph in paragraphs),
        }
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        tokenizer = Tokenizer(processor, hashlib.sha256(model).hexdigest(), training=training)
        for name, content in tokenizer.files().items():
            (partial / name).write_bytes(content)
    return tokenizer.metadata()


def sample(paragraphs: Iterable[str], max_bytes: int) -> list[str]:
    """At most `max_bytes` of UTF-8, each paragraph as likely as any other, in their order; all if they fit."""
    draws = random.Random(0)
    kept: list[tuple[float, int, str]] = []
    kept_bytes = 0
    for number, paragraph in enumerate(paragraphs):
        heapq.heappush(kept, (draws.random(), number, paragraph))
        kept_bytes += len(paragraph.encode())
        while kept_bytes > max_bytes and len(kept) > 1:
            kept_bytes -= len(heapq.heappop(kept)[2].encode())
    return [paragraph for _, _, paragraph in sorted(kept, key=lambda entry: entry[1])]


def _paragraphs(files: list[InputFile], reading: Reading) -> Iterator[str]:
    for unit in plan_units(files, reading, _NO_LIMIT):
        for part in unit:
            for document in documents(part, reading):
                yield from document


def _train_model(paragraphs: list[str], vocab_size: int, character_coverage: float, verbose: bool) -> bytes:
    model = io.BytesIO()
    pad_piece, cls_piece, sep_piece, unk_piece = SPECIAL_PIECES
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(paragraphs),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            pad_id=PAD_ID,
            bos_id=CLS_ID,
            eos_id=SEP_ID,
            unk_id=UNK_ID,
            pad_piece=pad_piece,
            bos_piece=cls_piece,
            eos_piece=sep_piece,
            unk_piece=unk_piece,
            max_sentence_length=_NO_LIMIT,
            num_threads=_NUM_THREADS,
            minloglevel=0 if verbose else 2,
        )
    except RuntimeError as error:
        raise _explained(str(error), vocab_size) from None
    return model.getvalue()


def _explained(message: str, vocab_size: int) -> VocabularySizeError:
    if found := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", message):
        return VocabularySizeError(
            f"--vocab-size {vocab_size} is too small: 256 bytes, {len(SPECIAL_PIECES)} special pieces and the"
            f" characters of this text need {found[1]}; give at least that, or lower --character-coverage"
        )
    if found := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return VocabularySizeError(
            f"--vocab-size {vocab_size} is too large for this much text; give at most {found[1]}, or more text"
        )
    return VocabularySizeError(f"sentencepiece cannot train {vocab_size} pieces on this text: {message}")


def _coverage(text: str) -> float:
    value = float(text)
    if not 0.98 <= value <= 1.0:  # what sentencepiece takes
        raise argparse.ArgumentTypeError(f"{text} is not between 0.98 and 1")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_input_arguments(parser)
    parser.add_argument(
        "--vocab-size", type=positive_int, required=True, help="pieces of the model, [MASK] not counted"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist or be empty")
    parser.add_argument(
        "--max-input-bytes",
        type=positive_int,
        default=DEFAULT_MAX_INPUT_BYTES,
        help="train on paragraphs of at most this much text, taken from everywhere (default: %(default)s)",
    )
    parser.add_argument(
        "--character-coverage",
        type=_coverage,
        default=DEFAULT_CHARACTER_COVERAGE,
        help="share of the text's characters that get pieces; bytes stand in for the others (default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="show sentencepiece's own log")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    def work() -> None:
        files = find_inputs(arguments.input)
        if not arguments.json:
            print(f"training {arguments.vocab_size:,} unigram pieces on {len(files)} file(s)", flush=True)
        metadata = train(
            files,
            reading_of(arguments),
            arguments.vocab_size,
            arguments.out,
            max_input_bytes=arguments.max_input_bytes,
            character_coverage=arguments.character_coverage,
            verbose=arguments.verbose,
        )
        training = metadata["training"]
        lines = [
            f"wrote {arguments.out}: {metadata['pieces']:,} pieces, [MASK] is {metadata['mask_id']}, from"
            f" {training['paragraphs']:,} paragraphs ({training['bytes'] / 1e6:.1f} MB)",
            f"a model for it needs model.vocab_size {metadata['vocabulary_size']} or more",
            f"next: python data_prep/tokenize_corpus.py --input ... --tokenizer {arguments.out} --out SHARDS",
        ]
        report(arguments.json, metadata | {"out": str(arguments.out)}, lines)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
