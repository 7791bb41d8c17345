"""Add tokens to a tokenizer: `add_tokens.py --tokenizer DIR --tokens WORD_OR_FILE... --out DIR`.

Writes a copy of the tokenizer in which each token is one id wherever a text spells it. The ids come after [MASK] and
after tokens added before; all others stay. Added tokens are words: masked, predicted and drawn as replacements.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from data_prep.command import report, run
from deberta_scale.data.tokenizer import Tokenizer, TokenizerError
from deberta_scale.durable import published_directory

RELEASED_ROWS = 128_100
"""Of the word embeddings of the released V2 and V3 models, whose tokenizers have 128,001 ids."""


def add_tokens(tokenizer_directory: Path, tokens: list[str], destination: Path) -> dict[str, Any]:
    """Publish the tokenizer with `tokens` added in `destination`. Returns its metadata.

    Raises TokenizerError naming a token that is empty, given twice, added before, or a piece already, or the file of
    an unusable tokenizer; ValueError when `destination` is in use.
    """
    tokenizer = Tokenizer.load(tokenizer_directory)
    if not tokens:
        raise TokenizerError(f"{tokenizer_directory}: no token to add; give at least one")
    for number, token in enumerate(tokens):
        problem = tokenizer.problem_of_adding(token)
        if token in tokens[:number]:
            problem = "it is given twice; give it once"
        if problem:
            raise TokenizerError(f"{tokenizer_directory}: cannot add {token!r}: {problem}")
    grown = Tokenizer(tokenizer.model, added_tokens=(*tokenizer.added_tokens, *tokens), training=tokenizer.training)
    with published_directory(destination) as partial:
        for name, content in grown.files().items():
            (partial / name).write_bytes(content)
    return grown.metadata()


def read_tokens(words_or_files: list[str]) -> list[str]:
    """Each argument that names a file gives the file's lines, blank ones left out; any other is a token itself.

    Raises TokenizerError naming a file that is not UTF-8.
    """
    tokens: list[str] = []
    for argument in words_or_files:
        path = Path(argument)
        if not path.is_file():
            tokens.append(argument)
            continue
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError:
            raise TokenizerError(f"{path}: not UTF-8; give a text file with one token a line") from None
        tokens += [line.rstrip("\r") for line in lines if line.strip()]
    return tokens


def _rows(first: int, vocabulary_size: int) -> str:
    """From which number of rows on a model need not grow."""
    advice = f"a model with model.vocab_size below {vocabulary_size} must grow to that"
    if first <= RELEASED_ROWS < vocabulary_size:
        missing = vocabulary_size - RELEASED_ROWS
        return f"{advice}; released V2 and V3 models have {RELEASED_ROWS:,} rows, {missing:,} too few"
    return advice


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="directory written by train_tokenizer.py, or a released one"
    )
    parser.add_argument(
        "--tokens",
        nargs="+",
        required=True,
        metavar="WORD_OR_FILE",
        help="tokens to add, or text files with one token a line",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist or be empty")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    def work() -> None:
        tokens = read_tokens(arguments.tokens)
        if not arguments.json:
            print(f"adding {len(tokens):,} token(s) to {arguments.tokenizer}", flush=True)
        metadata = add_tokens(arguments.tokenizer, tokens, arguments.out)
        vocabulary_size = metadata["vocabulary_size"]
        first = vocabulary_size - len(tokens)
        lines = [
            f"wrote {arguments.out}: the ids {first} to {vocabulary_size - 1}, in the order given",
            _rows(first, vocabulary_size),
            f"next: python data_prep/tokenize_corpus.py --input ... --tokenizer {arguments.out} --out SHARDS",
        ]
        ids = {token: first + number for number, token in enumerate(tokens)}
        report(arguments.json, metadata | {"out": str(arguments.out), "ids": ids}, lines)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
