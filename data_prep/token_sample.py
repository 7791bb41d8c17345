"""What is told of a split from a sample of its tokens: scripts, bytes, how often pieces occur.

The sample is the same at every call: documents spread evenly over the split, of a long one the tokens in its middle,
since documents begin with titles and licences.
"""

from collections import Counter
from typing import Any

import numpy as np

from data_prep.scripts_of_text import scripts_of
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.tokenizer import Tokenizer

SAMPLE_DOCUMENTS = 1000
SAMPLE_TOKENS_PER_DOCUMENT = 1024
"""Together at most a million tokens: seconds, and enough for rates of a thousandth and pieces of every thousandth."""
FREQUENT_PIECES = 40
_POINTS_OF_CURVE = 120


def spread(count: int, number: int) -> list[int]:
    """Up to `number` of 0 .. count - 1, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, number).astype(np.int64)).tolist()


def sample_facts(shards: ShardSet, tokenizer: Tokenizer, document_starts: np.ndarray) -> dict[str, Any]:
    """`document_starts` [documents + 1]: first token of each document, counted over the split.

    The byte rate is the share of tokens that are a byte of a character without a piece of its own: `<0xNN>` of a
    sentencepiece model with byte fallback, parts of characters of byte pairs.
    """
    stretches = [
        _middle(shards, document_starts, document) for document in spread(shards.num_documents, SAMPLE_DOCUMENTS)
    ]
    tokens = np.concatenate(stretches)
    counts = np.bincount(tokens, minlength=tokenizer.vocabulary_size)
    by_frequency = np.argsort(-counts, kind="stable")
    occurring = by_frequency[: int(np.count_nonzero(counts))]
    byte_tokens = sum(int(counts[token]) for token in occurring.tolist() if is_byte(tokenizer, token))
    ranks = np.unique(np.geomspace(1, len(occurring), _POINTS_OF_CURVE).astype(np.int64))
    return {
        "sample": {
            "documents": len(stretches),
            "tokens": len(tokens),
            "tokens_per_document_at_most": SAMPLE_TOKENS_PER_DOCUMENT,
            "is_whole_split": len(tokens) == shards.num_tokens,
        },
        "byte_rate": byte_tokens / len(tokens),
        "distinct_pieces": len(occurring),
        "frequent_pieces": [
            {"piece": tokenizer.piece(token), "id": token, "share": int(counts[token]) / len(tokens)}
            for token in occurring[:FREQUENT_PIECES].tolist()
        ],
        "rank_frequency": [[rank, int(counts[by_frequency[rank - 1]])] for rank in ranks.tolist()],
        "scripts": _scripts(tokenizer.decode(stretch) for stretch in stretches),
    }


def is_byte(tokenizer: Tokenizer, token: int) -> bool:
    """Is this id a byte, or a few, of a character, rather than characters?"""
    if token >= tokenizer.model.size or token == tokenizer.mask_id:
        return False
    if tokenizer.kind == "sentencepiece":
        return bool(tokenizer.processor.is_byte(token))
    return "\ufffd" in tokenizer.text_of(token)


def _middle(shards: ShardSet, document_starts: np.ndarray, document: int) -> np.ndarray:
    start, end = int(document_starts[document]), int(document_starts[document + 1])
    left_out = max(0, end - start - SAMPLE_TOKENS_PER_DOCUMENT)
    return shards.read(start + left_out // 2, end - start - left_out)


def _scripts(texts: Any) -> list[dict[str, Any]]:
    """By script, the most frequent first: its letters, and the documents of which it has most letters."""
    letters: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for text in texts:
        found = scripts_of(text)
        letters += found
        if found:
            documents[max(found, key=found.__getitem__)] += 1
    return [
        {"script": script, "letters": number, "share": number / letters.total(), "documents": documents[script]}
        for script, number in letters.most_common()
    ]
