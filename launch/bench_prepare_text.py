"""What the sides of `launch/bench.py prepare` read: texts laid out as a large corpus is, and a tokenizer.

Whatever the input is, each text becomes files of JSON lines of nearly one size, several for each worker, compressed as
the input is.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from data_prep.cleaning import Cleaner, CleaningConfig
from data_prep.inputs import Document, InputError, InputFile, Reading, all_documents, find_inputs, in_short
from data_prep.train_tokenizer import train
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.data.tokenizer_directory import FAST_FILE

SAMPLE_TEXT = Path(__file__).parent.parent / "data_prep" / "sample" / "austen.jsonl.gz"
_SAMPLE_VOCABULARY = 4000
_FILES_OF_A_WORKER = 4
_LEAST_DOCUMENTS = 4
"""Of a file, so that all together fall into both splits."""


@dataclass(frozen=True)
class Text:
    """What sides read, as files of JSON lines."""

    name: str
    """Of the input, for people."""
    files: list[Path]
    num_documents: int
    megabytes: float
    """Of the documents in UTF-8, 10^6 bytes each."""


def sample_tokenizer(directory: Path) -> None:
    """A small one, trained on the project's sample."""
    train(find_inputs([SAMPLE_TEXT]), Reading(), _SAMPLE_VOCABULARY, directory)


def lay_out_tokenizer(given: Path | None, directory: Path, with_fast_file: bool) -> Tokenizer:
    """Copy a tokenizer, or train the small one; beside it what `tokenizers` reads, where that is asked for.

    Raises TokenizerError, or ValueError for one that is more than a sentencepiece model.
    """
    if given is None:
        sample_tokenizer(directory)
    tokenizer = Tokenizer.load(given or directory)
    if tokenizer.kind != "sentencepiece" or tokenizer.added_tokens:
        raise ValueError(
            f"{given}: the other sides read nothing but a sentencepiece model, and this is of kind {tokenizer.kind}"
            f" with {len(tokenizer.added_tokens)} added token(s); give another --tokenizer"
        )
    files = tokenizer.files()
    if with_fast_file:
        from deberta_scale.convert.tokenizer_files import fast_tokenizer  # with torch, which takes a second

        files[FAST_FILE] = fast_tokenizer(tokenizer).encode()
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return tokenizer


def lay_out_text(files: list[InputFile], reading: Reading, megabytes: float, workers: int, directory: Path) -> Text:
    """The beginning of the input, or all of it as often as it takes. Raises InputError, also when it has no text."""
    directory.mkdir()
    num_files = _FILES_OF_A_WORKER * workers
    ending = ".jsonl" + (files[0].path.suffix if files[0].is_compressed else "")
    paths = [directory / f"{number:04d}{ending}" for number in range(num_files)]
    text = _again_and_again(files, reading)
    num_documents = num_bytes = 0
    for number, path in enumerate(paths, 1):
        lines: list[str] = []
        while len(lines) < _LEAST_DOCUMENTS or num_bytes < megabytes * 1e6 * number / num_files:
            content = "\n".join(next(text))
            num_bytes += len(content.encode())
            lines.append(json.dumps({"text": content}, ensure_ascii=False) + "\n")
        path.write_bytes(_compressed("".join(lines).encode(), ending))
        num_documents += len(lines)
    return Text(in_short(files), paths, num_documents, num_bytes / 1e6)


def _compressed(content: bytes, ending: str) -> bytes:
    if ending.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.compress(content) if ending.endswith(".zst") else content


def _again_and_again(files: list[InputFile], reading: Reading) -> Iterator[Document]:
    """The documents, from the beginning again after the last; without what our cleaning takes out, since the others
    take out nothing. Raises InputError when there are none."""
    cleaner = Cleaner(CleaningConfig())
    while True:
        for document in all_documents(files, reading):
            if cleaned := cleaner.clean(document):
                yield cleaned
        if not cleaner.counts["documents_out"]:
            raise InputError(f"{in_short(files)}: no text in it, nothing to measure on")
