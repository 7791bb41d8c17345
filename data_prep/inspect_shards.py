"""Look into shards: `inspect_shards.py DIR`.

Prints for each split its counts, its rates of unknown and byte pieces, histograms of document lengths and of scripts,
how the first tokens of a few documents read, cut into pieces (`▁` or `Ġ` is a space, `¶` the end of a paragraph), and a
few rows with their masks as the model sees them, by the settings of the training config that `--config` names.
`--report FILE.html` writes all of it as a page, with what the preparation left out and how often pieces occur.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.command import positive_int, report, run
from data_prep.masked_rows import RowSettings, default_settings, lines_of_rows, masked_rows, settings_of
from data_prep.report_page import write_report
from data_prep.scripts_of_text import visible
from data_prep.token_sample import sample_facts, spread
from data_prep.workplace import PREPARATION_FILE, SPLITS
from deberta_scale.config_file import load
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.sources import Sources
from deberta_scale.data.tokenizer import Tokenizer

DEFAULT_DOCUMENTS = 3
DEFAULT_ROWS = 2
_TOKENS_SHOWN = 48
"""Of each document: about three lines of a terminal."""
_PLACES_SHOWN = 64
_SCRIPTS_SHOWN = 10
_BAR_CHARACTERS = 40


def inspect(
    directory: Path,
    splits: list[str],
    num_documents: int,
    num_rows: int = DEFAULT_ROWS,
    settings: RowSettings | None = None,
) -> dict[str, Any]:
    """What stands in a directory that tokenize_corpus.py wrote, by split, with up to `num_documents` examples of each
    and `num_rows` rows with their masks, by the settings of a run or the default ones.

    Raises ShardError or TokenizerError naming the file that is missing, damaged, or not of the same tokenizer.
    """
    settings = settings or default_settings(directory)
    opened = {split: Sources(directory / split, settings.data, settings.seed) for split in splits}
    return {
        split: _facts(sources.all[0].shards, sources.tokenizer, num_documents)
        | {"rows": masked_rows(sources, settings, num_rows)}
        for split, sources in opened.items()
    }


def preparation_of(directory: Path) -> dict[str, Any] | None:
    """What tokenize_corpus.py wrote of input, options and left-out text; None where older shards have no such file.

    Raises ValueError naming the file when it is damaged.
    """
    path = directory / PREPARATION_FILE
    if not path.exists():
        return None
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not what data_prep/tokenize_corpus.py writes; copy it again")
    return content


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
    document_starts = sequence_starts[shards.document_index]
    document_tokens = np.diff(document_starts)
    shown = spread(shards.num_documents, num_documents)
    return {
        "documents": shards.num_documents,
        "tokens": shards.num_tokens,
        "sequences": shards.num_sequences,
        "shards": shards.num_shards,
        "fingerprint": shards.fingerprint,
        "unknown_tokens": shards.unknown_tokens,
        "unknown_rate": shards.unknown_tokens / shards.num_tokens,
        "unigram_entropy_nats": shards.unigram_entropy_nats,
        "median_document_tokens": float(np.median(document_tokens)),
        "longest_document_tokens": int(document_tokens.max()),
        "histogram": histogram(document_tokens),
        "examples": [_example(shards, tokenizer, document, sequence_starts) for document in shown],
    } | sample_facts(shards, tokenizer, document_starts)


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
        f"  {facts['unknown_rate']:.3%} unknown, {facts['byte_rate']:.3%} byte pieces in"
        f" {facts['sample']['tokens']:,} sampled tokens",
        f"  unigram entropy {facts['unigram_entropy_nats']:.4f} nats, the loss of guessing by frequency alone",
        f"  tokens in a document: median {facts['median_document_tokens']:,.0f}, at most"
        f" {facts['longest_document_tokens']:,}",
    ]
    most = max(bucket["documents"] for bucket in facts["histogram"])
    for bucket in facts["histogram"]:
        span = f"{bucket['shortest']:,} - {bucket['longest']:,}"
        lines.append(f"  {span:>25} {bucket['documents']:>11,} {_bar(bucket['documents'], most)}".rstrip())
    lines.append(f"  scripts of the letters in {facts['sample']['documents']:,} documents:")
    for entry in facts["scripts"][:_SCRIPTS_SHOWN]:
        bar = _bar(entry["letters"], facts["scripts"][0]["letters"])
        lines.append(f"  {entry['script']:>25} {entry['share']:>11.3%} {bar}")
    if not facts["scripts"]:
        lines.append("    none, there are no letters")
    for example in facts["examples"]:
        pieces = " ¶ ".join(" ".join(paragraph) for paragraph in example["pieces"])
        more = " ..." if example["tokens"] > _TOKENS_SHOWN else " ¶"
        lines += [
            f"  document {example['document']:,}: {example['tokens']:,} tokens, {example['sequences']:,} sequences",
            f"    text:   {' ¶ '.join(example['text'])}{more}",
            f"    pieces: {pieces}{more}",
        ]
    return lines + lines_of_rows(facts["rows"], _PLACES_SHOWN)


def _bar(part: int, longest: int) -> str:
    return "#" * -(-part * _BAR_CHARACTERS // longest)  # rounded up: one is seen as well


def html_file(text: str) -> Path:
    """An argparse type: held to its ending, so that no shard is replaced by a page."""
    path = Path(text)
    if path.suffix not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .html")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no directory")
    return path


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
    parser.add_argument(
        "--rows",
        type=positive_int,
        default=DEFAULT_ROWS,
        metavar="N",
        help="show this many masked rows of each split, spread over it (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="a training config: rows are packed and masked as its run does (default: as with rows of 512 places)",
    )
    parser.add_argument("--report", type=html_file, metavar="FILE.html", help="write all of it as a page as well")
    parser.add_argument("--split", choices=SPLITS, help="only this one (default: both)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    def work() -> None:
        if not arguments.json:
            print(f"looking into {arguments.directory}", flush=True)
        splits = [arguments.split] if arguments.split else list(SPLITS)
        settings = None
        if arguments.config is not None:
            settings = settings_of(load(arguments.config), arguments.config, arguments.directory)
        by_split = inspect(arguments.directory, splits, arguments.documents, arguments.rows, settings)
        found = {
            "directory": str(arguments.directory),
            "tokenizer": Tokenizer.load(arguments.directory / "tokenizer").describe(),
            "preparation": preparation_of(arguments.directory),
            "splits": by_split,
        }
        lines = [visible(line) for split, facts in by_split.items() for line in _lines(split, facts)]
        if arguments.report:
            write_report(arguments.report, found)
            lines.append(f"wrote {arguments.report}")
            found["report"] = str(arguments.report)
        lines.append(f"next: python launch/plan.py configs/pretrain/tiny.yaml data.shards={arguments.directory}")
        report(arguments.json, found, lines)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
