"""The sources of a split, opened, checked and laid end to end for the compiled part of the loader."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deberta_scale.config import ConfigError, DataConfig
from deberta_scale.data.assembly import Stream
from deberta_scale.data.packing import Rows, pack
from deberta_scale.data.shards import ShardError, ShardSet
from deberta_scale.data.tokenizer import Tokenizer

_SEED_BITS = 63


@dataclass(frozen=True)
class Source:
    """One directory of shards of a split."""

    name: str
    """Empty for the only one."""
    shards: ShardSet
    rows: Rows
    seed: int
    """Of its order and its masks."""


class Sources:
    """All sources of a split. Rows and tokens are numbered through, source after source."""

    def __init__(self, split_dirs: Path | dict[str, Path], config: DataConfig, seed: int) -> None:
        """Open and pack. Raises ShardError for files that are damaged, TokenizerError for a tokenizer that is, and
        ShardError naming both when two directories were made with different ones."""
        named = {"": split_dirs} if isinstance(split_dirs, Path) else dict(sorted(split_dirs.items()))
        opened = {name: ShardSet(directory) for name, directory in named.items()}
        self.tokenizer = _the_one_tokenizer(list(opened.values()))
        self.all: list[Source] = [
            Source(name, shards, pack(shards, config.sequence_length, config.packing), seed_of(name, seed))
            for name, shards in opened.items()
        ]
        """By name, as Mixture numbers them."""
        self.random_access = _larger_than_half_of_memory(sum(shards.num_bytes for shards in opened.values()))
        """True when the kernel was told not to read ahead."""
        if self.random_access:
            for shards in opened.values():
                shards.expect_random_access()
        self.num_rows = np.array([len(source.rows) for source in self.all])
        """[S] int64"""
        self.first_row = np.cumsum(self.num_rows) - self.num_rows
        """[S] int64: in the numbering of the stream."""
        self.seeds = np.array([source.seed for source in self.all])
        """[S] int64"""

    def stream(self) -> Stream:
        """As plain arrays. Valid as long as this object lives, which holds the mapped files."""
        parts = [part for source in self.all for part in source.shards.token_arrays]
        rows = [source.rows for source in self.all]
        tokens_before = np.cumsum([0] + [source.shards.num_tokens for source in self.all])
        pieces_before = np.cumsum([0] + [len(part.lengths) for part in rows])
        starts = [part.starts + before for part, before in zip(rows, tokens_before, strict=False)]
        firsts = [part.first_piece[:-1] + before for part, before in zip(rows, pieces_before, strict=False)]
        return Stream(
            addresses=np.array([part.ctypes.data for part in parts], np.uint64),
            shard_starts=np.cumsum([0] + [len(part) for part in parts]),
            first_piece=np.concatenate([*firsts, pieces_before[-1:]]),
            piece_starts=np.concatenate(starts),
            piece_lengths=np.concatenate([part.lengths for part in rows]),
            one_segment=rows[0].one_segment,
        )

    def verify_share(self, rank: int, world_size: int) -> None:
        """Digest every world_size-th shard again. Raises ShardError naming the file that changed."""
        shards = [(source.shards, number) for source in self.all for number in range(source.shards.num_shards)]
        for shard_set, number in shards[rank::world_size]:
            shard_set.verify_shard(number)

    def check_vocabulary(self, model_vocab_size: int) -> None:
        """Raises ConfigError when the model has too few rows for the tokens."""
        if model_vocab_size < self.tokenizer.vocabulary_size:
            raise ConfigError(
                f"model.vocab_size {model_vocab_size} is too small for the tokenizer of"
                f" {self.all[0].shards.split_dir.parent}, which has {self.tokenizer.pieces} pieces and [MASK]; give"
                f" {self.tokenizer.vocabulary_size} or more"
            )

    def fingerprints(self) -> dict[str, str]:
        """By name of the source; empty for a single one."""
        return {source.name: source.shards.fingerprint for source in self.all if source.name}

    def fingerprint(self, config: DataConfig) -> str:
        """Hexadecimal: of the tokens; of a mixture, also of its weights and phases."""
        if config.mixture is None:
            return self.all[0].shards.fingerprint
        content = {"sources": self.fingerprints(), "weights": config.mixture.weights_by_step()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seed_of(name: str, seed: int) -> int:
    """Of a source: others coming or going do not change its order. The only one, without a name, has the run's."""
    if not name:
        return seed
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _SEED_BITS)


def _the_one_tokenizer(opened: list[ShardSet]) -> Tokenizer:
    first = opened[0]
    tokenizer_dir = first.split_dir.parent / "tokenizer"
    tokenizer = Tokenizer.load(tokenizer_dir)
    first.check_tokenizer(tokenizer.describe(), tokenizer_dir)
    for other in opened[1:]:
        if other.tokenizer_sha256 != tokenizer.sha256:
            raise ShardError(
                f"{other.split_dir} was made with another tokenizer (sha256 {other.tokenizer_sha256[:16]}) than"
                f" {first.split_dir} ({tokenizer.sha256[:16]}); a mixture needs one: tokenize the text again with"
                f" data_prep/tokenize_corpus.py --tokenizer {tokenizer_dir}"
            )
        other.check_tokenizer(tokenizer.describe(), tokenizer_dir)
    return tokenizer


def _larger_than_half_of_memory(num_bytes: int) -> bool:
    return num_bytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
