"""What stands in directories that data_prep/tokenize_corpus.py wrote."""

import hashlib
from pathlib import Path

import numpy as np

from deberta_scale.data.shards import ShardSet
from deberta_scale.data.tokenizer import Tokenizer


def texts_of(out: Path, split: str) -> list[list[str]]:
    """The decoded paragraphs of each document."""
    shards, tokenizer = ShardSet(out / split), Tokenizer.load(out / "tokenizer")
    ends = np.cumsum(shards.sequence_lengths)
    paragraphs = [
        tokenizer.decode(shards.read(int(end - length), int(length)))
        for end, length in zip(ends, shards.sequence_lengths, strict=True)
    ]
    bounds = shards.document_index
    return [paragraphs[bounds[d] : bounds[d + 1]] for d in range(shards.num_documents)]


def digests_of(directory: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path in the directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
