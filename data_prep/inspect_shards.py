"""Look into shards: `inspect_shards.py DIR`.

Prints for each split its counts, its unknown rate, a histogram of document lengths, and how the first tokens of a few
documents read, cut into pieces (`▁` or `Ġ` is a space, `¶` the end of a paragraph).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.command import positive_int, report, run
from deberta_scale.data.shards import ShardError, ShardSet
from deberta_scale.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")
DEFAULT_DOCUMENTS = 3
_TOKENS_SHOWN = 48
"""Of each document: about three lines of a terminal."""
_BAR_CHARACTERS = 40


def inspect(directory: Path, splits: list[str], num_documents: int) -> dict[str, Any]:
    """What stands in a directory that tokenize_corpus.py wrote, by split, with up to `num_documents` examples of each.

    Raises ShardError or TokenizerError naming the file that is missing, damaged, or not of the same tokenizer.
    """
    opened = {split: ShardSet(directory / split) for split in splits}
    tokenizer = Tokenizer.load(directory / "tokenizer")
    for split, shards in opened.items():
        if shards.tokenizer_sha256 != tokenizer.sha256:
            raise ShardError(f"{directory / split}: made with another tokenizer than {directory / 'tokenizer'}")
    return {split: _facts(shards, tokenizer, num_documents) for split, shards in opened.items()}


def histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """How many lengths, all at least 1, lie in each doubling `shortest` .. `longest` from the first that holds any."""
    doublings = np.bincount(np.frexp(lengths)[1] - 1)  # frexp: 2 ** (exponent - 1) <= length < 2 ** exponent
    first = int(np.flatnonzero(doublings)[0])
    return [
        {"shortest": 2**power, "longest": 2 ** (power + 1) - 1, "documents": int(doublings[power])}
        for power in range(first, len(doublings))
    ]


def _facts(shards: ShardSet, tokenizer: Tokenizer, num_documents: int) -> dict[str, Any]:
    sequence_starts = np.concatenate([[0], np.cumsum(shards.sequence_lengths, dtype=np.int64)])
    document_tokens = np.diff(sequence_starts[shards.document_index])
    spread = np.unique(np.linspace(0, shards.num_documents - 1, num_documents).astype(np.int64)).tolist()
    return {
        "documents": shards.num_documents,
        "tokens": shards.num_tokens,
        "sequences": shards.num_sequences,
        "shards": shards.num_shards,
        "unknown_rate": shards.unknown_tokens / shards.num_tokens,
        "unigram_entropy_nats": shards.unigram_entropy_nats,
        "median_document_tokens": float(np.median(document_tokens)),
        "longest_document_tokens": int(document_tokens.max()),
        "histogram": histogram(document_tokens),
        "examples": [_example(shards, tokenizer, document, sequence_starts) for document in spread],
    }


def _example(shards: ShardSet, tokenizer: Tokenizer, document: int, sequence_starts: np.ndarray) -> dict[str, Any]:
    first, end = (int(shards.document_index[d]) for d in (document, document + 1))
    num_tokens = int(sequence_starts[end] - sequence_starts[first])
    paragraphs: list[np.ndarray] = []
    left = _TOKENS_SHOWN
    for sequence in range(first, end):
        length = min(left, int(shards.sequence_lengths[sequence]))
        if not length:
            break
        paragraphs.append(shards.read(int(sequence_starts[sequence]), length))
        left -= length
    return {
        "document": document,
        "tokens": num_tokens,
        "sequences": end - first,
        "pieces": [[tokenizer.piece(int(token)) for token in paragraph] for paragraph in paragraphs],
        "text": [tokenizer.decode(paragraph) for paragraph in paragraphs],
    }


def _lines(split: str, facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{split}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, {facts['sequences']:,} sequences in"
        f" {facts['shards']} shard(s)",
        f"  {facts['unknown_rate']:.3%} unknown, unigram entropy {facts['unigram_entropy_nats']:.4f} nats, the loss of"
        " guessing by frequency alone",
        f"  tokens in a document: median {facts['median_document_tokens']:,.0f}, at most"
        f" {facts['longest_document_tokens']:,}",
    ]
    most = max(bucket["documents"] for bucket in facts["histogram"])
    for bucket in facts["histogram"]:
        bar = "#" * -(-bucket["documents"] * _BAR_CHARACTERS // most)  # rounded up: one document is seen as well
        span = f"{bucket['shortest']:,} - {bucket['longest']:,}"
        lines.append(f"  {span:>25} {bucket['documents']:>11,} {bar}".rstrip())
    for example in facts["examples"]:
        pieces = " ¶ ".join(" ".join(paragraph) for paragraph in example["pieces"])
        more = " ..." if example["tokens"] > _TOKENS_SHOWN else " ¶"
        lines += [
            f"  document {example['document']:,}: {example['tokens']:,} tokens, {example['sequences']:,} sequences",
            f"    text:   {' ¶ '.join(example['text'])}{more}",
            f"    pieces: {pieces}{more}",
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory written by tokenize_corpus.py")
    parser.add_argument(
        "--documents",
        type=positive_int,
        default=DEFAULT_DOCUMENTS,
        metavar="N",
        help="show the beginning of this many documents of each split, spread over it (default: %(default)s)",
    )
    parser.add_argument("--split", choices=SPLITS, help="only this one (default: both)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    def work() -> None:
        if not arguments.json:
            print(f"looking into {arguments.directory}", flush=True)
        splits = [arguments.split] if arguments.split else list(SPLITS)
        found = inspect(arguments.directory, splits, arguments.documents)
        lines = [line for split, facts in found.items() for line in _lines(split, facts)]
        lines.append(f"next: python launch/plan.py configs/pretrain/tiny.yaml data.shards={arguments.directory}")
        report(arguments.json, {"directory": str(arguments.directory), "splits": found}, lines)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
