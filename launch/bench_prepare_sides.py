"""The sides of `launch/bench.py prepare`: files of JSON lines in, tokens on disk out, each way at its best setting.

All read the same files and cut the same paragraphs with the same sentencepiece, but for `tokenizers`. What only one of
them needs is imported inside it. The settings are the fastest that were found on 20 MB of English, in powers of two.
"""

import gzip
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import sentencepiece
import zstandard

from data_prep.inputs import Reading, find_inputs
from data_prep.preparation import BYTES_PER_TOKEN
from data_prep.records import Document, paragraphs_of
from data_prep.tokenize_corpus import tokenize
from deberta_scale.data.tokenizer import MODEL_FILE
from deberta_scale.data.tokenizer_directory import FAST_FILE

_DOCUMENTS_OF_A_CHUNK = 32
_DOCUMENTS_OF_A_BATCH = 256


class Side(NamedTuple):
    run: Callable[[list[Path], Path, int, Path], int]
    """Of files, the tokenizer's directory, the number of processes or threads, and an empty directory to write into;
    returns how many tokens it wrote."""
    needs: tuple[str, ...] = ()
    """Modules that it does not run without."""
    is_slow: bool = False
    """Runs on a slice of the text."""


def ours(files: list[Path], tokenizer_dir: Path, workers: int, out: Path) -> int:
    """To published shards with digests. Every file is a unit of work, as it is in a large corpus."""
    shard_tokens = -(-max(file.stat().st_size for file in files) // BYTES_PER_TOKEN)
    result = tokenize(
        find_inputs(files),
        Reading(),
        tokenizer_dir,
        out / "shards",
        workers=workers,
        validation_fraction=0.5,  # so that few documents fall into both splits
        shard_tokens=shard_tokens,
    )
    assert result is not None, "nobody else publishes"
    return int(result["train"]["tokens"] + result["validation"]["tokens"])


def pool_of_lists(files: list[Path], tokenizer_dir: Path, workers: int, out: Path) -> int:
    """The parent reads lines, a pool cuts them, lists of ids come back pickled, the parent writes one file: how
    Megatron's preprocessing works."""
    num_tokens = 0
    model = str(tokenizer_dir / MODEL_FILE)
    context = multiprocessing.get_context("fork")
    with context.Pool(workers) as pool, (out / "tokens.bin").open("wb") as stream:
        for ids in pool.imap(partial(_list_of_ids, model), _lines(files), _DOCUMENTS_OF_A_CHUNK):
            stream.write(np.array(ids, dtype=np.int32).tobytes())
            num_tokens += len(ids)
        pool.close()
        pool.join()
    return num_tokens


def datasets_map(files: list[Path], tokenizer_dir: Path, workers: int, out: Path) -> int:
    """`datasets.Dataset.map` in batches, the ids of a document one numpy array, to Arrow files. Nothing was cached
    before, since `out` is a new directory."""
    import datasets
    import pyarrow.compute

    datasets.disable_progress_bars()
    text = datasets.load_dataset(
        "json", data_files=[str(file) for file in files], split="train", cache_dir=str(out / "text"), num_proc=workers
    )
    ids = text.map(
        partial(_batch_of_ids, str(tokenizer_dir / MODEL_FILE)),
        batched=True,
        batch_size=_DOCUMENTS_OF_A_BATCH,
        num_proc=workers,
        remove_columns=text.column_names,
        features=datasets.Features({"ids": datasets.List(datasets.Value("int32"))}),
        cache_file_name=str(out / "ids.arrow"),
    )
    return int(pyarrow.compute.sum(pyarrow.compute.list_value_length(ids.data["ids"])).as_py())


def fast_tokenizers(files: list[Path], tokenizer_dir: Path, workers: int, out: Path) -> int:
    """Our exported tokenizer.json through `tokenizers`, whose threads take the place of processes, into one file."""
    os.environ |= {"RAYON_NUM_THREADS": str(workers), "TOKENIZERS_PARALLELISM": "true"}  # read at the first batch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_dir / FAST_FILE))
    num_tokens = 0
    documents = map(_paragraphs, _lines(files))
    with (out / "tokens.bin").open("wb") as stream:
        while batch := list(islice(documents, _DOCUMENTS_OF_A_BATCH)):
            encoded = tokenizer.encode_batch_fast(list(chain.from_iterable(batch)), add_special_tokens=False)
            ids = np.fromiter(chain.from_iterable(text.ids for text in encoded), dtype=np.int32)
            stream.write(ids.tobytes())
            num_tokens += len(ids)
    return num_tokens


SIDES = {
    "ours": Side(ours),
    "Pool, lists": Side(pool_of_lists),
    "datasets.map": Side(datasets_map, needs=("datasets",)),
    "tokenizers": Side(fast_tokenizers, needs=("tokenizers", "google.protobuf"), is_slow=True),
}


def _list_of_ids(model: str, line: bytes) -> list[int]:
    encoded = _processor(model).encode(_paragraphs(line), num_threads=1)
    return list(chain.from_iterable(encoded))


def _batch_of_ids(model: str, rows: dict[str, list[str]]) -> dict[str, list[np.ndarray]]:
    documents = [paragraphs_of(text) for text in rows["text"]]
    processor = _processor(model)
    encoded = iter(processor.encode(list(chain.from_iterable(documents)), return_type="numpy", num_threads=1))
    return {"ids": [np.concatenate(list(islice(encoded, len(document)))) for document in documents]}


@cache
def _processor(model: str) -> sentencepiece.SentencePieceProcessor:
    """Loaded once in each process."""
    return sentencepiece.SentencePieceProcessor(model_file=model)


def _paragraphs(line: bytes) -> Document:
    record: Any = json.loads(line)
    return paragraphs_of(record["text"])


def _lines(files: Iterable[Path]) -> Iterator[bytes]:
    for file in files:
        with opened(file, "rb") as stream:
            yield from io.BufferedReader(stream)  # type: ignore[type-var]


def opened(file: Path, mode: str) -> BinaryIO:
    """A file by the ending of its name: .gz, .zst or plain."""
    opener: Any = {".gz": gzip.open, ".zst": zstandard.open}.get(file.suffix, open)
    stream: BinaryIO = opener(file, mode)
    return stream
