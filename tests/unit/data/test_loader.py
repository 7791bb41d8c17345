"""The same samples and masks, however they are spread over ranks, micro-batches and restarts."""

import json
import shutil
import time
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ConfigError, DataConfig, MaskingConfig
from deberta_scale.data.loader import DIGEST_MODULUS, MaskedLoader
from deberta_scale.data.shards import ShardError, ShardSet, ShardWriter, write_manifest
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.data.twins import PlainLoader

SEQUENCES = 24


def open_split(
    directory: Path,
    rank: int = 0,
    world_size: int = 1,
    micro: int = 4,
    packing: str = "best_fit",
    seed: int = 1,
    **settings: Any,
) -> MaskedLoader:
    config = DataConfig(shards=directory, sequence_length=64, packing=packing, **settings)
    return MaskedLoader(
        directory / "train",
        config,
        seed=seed,
        micro_sequences=micro,
        rank=rank,
        world_size=world_size,
        model_vocab_size=1000,
    )


def rows_of_step(loaders: list[MaskedLoader], first_sample: int) -> set[tuple[int, ...]]:
    steps = [loader.step(first_sample, SEQUENCES) for loader in loaders]
    return {tuple(row) for step in steps for batch in step.micro_batches for row in batch.token_ids.tolist()}


@pytest.mark.parametrize(("world_size", "micro"), [(1, 2), (2, 4), (3, 8), (8, 3), (4, 1)])
def test_ranks_and_micro_batches_share_out_the_same_samples(prepared_shards: Path, world_size: int, micro: int) -> None:
    one = open_split(prepared_shards, micro=SEQUENCES)
    many = [open_split(prepared_shards, rank, world_size, micro) for rank in range(world_size)]
    for first_sample in (0, 3 * SEQUENCES, 10**9):
        assert rows_of_step(many, first_sample) == rows_of_step([one], first_sample)
        steps = [loader.step(first_sample, SEQUENCES) for loader in many]
        whole = one.step(first_sample, SEQUENCES)
        assert sum(step.digest for step in steps) % DIGEST_MODULUS == whole.digest
        assert sum(step.predicted_tokens for step in steps) == whole.predicted_tokens
        assert sum(step.useful_tokens for step in steps) == whole.useful_tokens


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_digests_are_the_same_for_all_ranks_workers_and_a_resume_in_the_middle(
    prepared_shards: Path, world_size: int, workers: int
) -> None:
    """R2, R3: The run is stopped after 4 steps and goes on with other numbers of ranks, rows at a time and threads."""
    one = open_split(prepared_shards, micro=SEQUENCES, workers=0)
    expected = [one.step(number * SEQUENCES, SEQUENCES).digest for number in range(9)]
    assert len(set(expected)) == 9
    found = digests_of_steps(prepared_shards, 0, 4, world_size=world_size, micro=3, workers=workers)
    found += digests_of_steps(prepared_shards, 4, 5, world_size=9 - world_size, micro=1, workers=3 - workers)
    assert found == expected


def digests_of_steps(directory: Path, first: int, count: int, *, world_size: int, **settings: int) -> list[int]:
    world_size = next(size for size in range(world_size, 0, -1) if SEQUENCES % (size * settings["micro"]) == 0)
    totals = [0] * count
    for rank in range(world_size):
        steps = open_split(directory, rank, world_size, **settings).steps(first * SEQUENCES, SEQUENCES)
        totals = [(total + next(steps).digest) % DIGEST_MODULUS for total in totals]
        steps.close()
    return totals


@pytest.mark.parametrize("packing", ["best_fit", "concat", "doc"])
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_every_array_is_that_of_the_plain_twin(prepared_shards: Path, packing: str, probability: float) -> None:
    masking = MaskingConfig(probability=probability, max_span_words=3 if probability < 0.2 else 5)
    loader = open_split(prepared_shards, micro=8, packing=packing, seed=7, masking=masking)
    twin = PlainLoader(prepared_shards / "train", loader._config, seed=7)
    for first in (0, 3 * SEQUENCES, 10**9):
        for number, batch in enumerate(loader.step(first, SEQUENCES).micro_batches):
            expected = twin.batch(range(first + 8 * number, first + 8 * number + 8))
            for name, value in vars(batch).items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(value, getattr(expected, name), rtol=0, atol=0, msg=name)
                else:
                    assert value == getattr(expected, name), name


def test_the_plain_twin_refuses_what_it_does_not_mask_like(prepared_shards: Path) -> None:
    config = DataConfig(shards=prepared_shards, sequence_length=64, masking=MaskingConfig(compat="official"))
    with pytest.raises(ValueError, match=r"masking\.compat official: the plain twin .* OfficialGenerator"):
        PlainLoader(prepared_shards / "train", config, seed=1)


def test_rows_of_several_shards_are_those_of_one_stream(prepared_shards: Path, tmp_path: Path) -> None:
    source = ShardSet(prepared_shards / "train")
    shutil.copytree(prepared_shards / "tokenizer", tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    (tmp_path / "train").mkdir()
    entries, counts = [], 0
    for shard, documents in enumerate(np.array_split(np.arange(source.num_documents), 3)):
        writer = ShardWriter(tmp_path / "train" / f"{shard:05d}", tokenizer.vocabulary_size, tokenizer.unk_id)
        for document in documents:
            first, end = source.document_index[document], source.document_index[document + 1]
            starts = np.cumsum(source.sequence_lengths) - source.sequence_lengths
            writer.add([source.read(int(starts[s]), int(source.sequence_lengths[s])) for s in range(first, end)])
        entries.append({"name": f"{shard:05d}", "source": {}, **writer.finish()})
        counts = counts + writer.token_counts
    write_manifest(tmp_path / "train", tokenizer.describe(), entries, counts)
    assert open_split(tmp_path).step(0, SEQUENCES).digest == open_split(prepared_shards).step(0, SEQUENCES).digest


def test_sample_a_billion_is_reached_at_once(prepared_shards: Path) -> None:
    """R5."""
    loader = open_split(prepared_shards)
    loader.step(0, SEQUENCES)
    begin = time.process_time()
    loader.step(10**9, SEQUENCES)
    assert time.process_time() - begin < 0.5, "a few milliseconds; launch/bench.py loader measures it"


def test_digests_are_equal_for_equal_arrays_and_no_others(prepared_shards: Path) -> None:
    """The same rows masked a little differently; masked alike and other tokens behind the masks."""
    settings = [{}, {"random_fraction": 0.2}, {"mask_fraction": 0.9}, {"max_span_words": 2}, {"mask_fraction": 1.0}]
    settings[-1]["random_fraction"] = 0.0
    loaders = [open_split(prepared_shards, masking=MaskingConfig.model_validate(s)) for s in settings]
    samples = [loader.sample(number) for loader in loaders for number in range(3 * len(loader))]
    contents = {tuple(part.tobytes() for part in astuple(sample)[:-1]) for sample in samples}
    assert len({sample.digest for sample in samples}) == len(contents) < len(samples)


def memory_flags(path: Path) -> list[str]:
    """Of each mapping of a file into this process; `rr` is among them where the kernel does not read ahead."""
    mappings = Path("/proc/self/smaps").read_text().split("\nVmFlags:")
    return [flags.split("\n")[0] for mapping, flags in pairwise(mappings) if str(path) in mapping]


def test_sets_larger_than_half_of_the_memory_are_read_without_reading_ahead(
    prepared_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shutil.copytree(prepared_shards, tmp_path / "shards")
    ordinary = open_split(shards)
    assert "MADV_RANDOM" not in ordinary.describe()
    assert not any(" rr" in flags for flags in memory_flags(shards / "train" / "00000.bin"))
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    loader = open_split(shards)
    assert "larger than half of the memory: read without reading ahead (MADV_RANDOM)" in loader.describe()
    assert any(" rr" in flags for flags in memory_flags(shards / "train" / "00000.bin"))
    assert loader.step(0, SEQUENCES).digest == ordinary.step(0, SEQUENCES).digest


def test_samples_change_with_seed_and_epoch(prepared_shards: Path) -> None:
    loader, other = open_split(prepared_shards), open_split(prepared_shards, seed=2)
    epoch = len(loader)
    digests = {loader.sample(number).digest for number in range(2 * epoch)}
    assert len(digests) > 1.99 * epoch, "only rows of a few tokens may be masked the same way twice"
    assert loader.sample(0).digest != other.sample(0).digest


def test_best_fit_rows_hold_whole_documents_between_cls_and_sep(prepared_shards: Path) -> None:
    loader = open_split(prepared_shards)
    most_segments = 0
    for number in range(len(loader)):
        sample = loader.sample(number)
        tokens = sample.shown.copy()
        tokens[sample.predicted_places] = sample.predicted_ids
        for segment in range(1, sample.segments.max() + 1):
            places = np.flatnonzero(sample.segments == segment)
            assert tokens[places[0]] == Tokenizer.cls_id and tokens[places[-1]] == Tokenizer.sep_id
            assert (np.diff(places) == 1).all()
            assert sample.positions[places].tolist() == list(range(len(places)))
        padding = sample.segments == 0
        assert not tokens[padding].any() and not sample.positions[padding].any()
        most_segments = max(most_segments, int(sample.segments.max()))
    assert most_segments > 1


def test_concat_rows_are_one_segment_without_padding(prepared_shards: Path) -> None:
    loader = open_split(prepared_shards, packing="concat")
    samples = [loader.sample(number) for number in range(len(loader))]
    assert sum((sample.segments == 0).any() for sample in samples) <= 2
    assert all(sample.segments.max() == 1 and sample.shown[0] == Tokenizer.cls_id for sample in samples)


def test_batches_name_predicted_places_in_the_flat_batch(prepared_shards: Path) -> None:
    loader = open_split(prepared_shards)
    (batch, *_) = loader.step(0, SEQUENCES).micro_batches
    samples = [loader.sample(number) for number in range(4)]
    expected = [row * 64 + place for row, sample in enumerate(samples) for place in sample.predicted_places]
    assert batch.predict_positions.tolist() == expected
    assert batch.predict_ids.tolist() == [i for sample in samples for i in sample.predicted_ids]
    assert batch.max_predictions_per_row == max(len(sample.predicted_places) for sample in samples)
    assert batch.token_ids.dtype == batch.predict_ids.dtype == torch.int64


def evaluation_batches(loader: MaskedLoader, sequences: int) -> list[MaskedBatch]:
    return [batch for part in loader.evaluation_parts(sequences) for batch in part.batches]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_reads_the_first_rows_once_in_equally_many_batches(prepared_shards: Path, world_size: int) -> None:
    loaders = [open_split(prepared_shards, rank, world_size) for rank in range(world_size)]
    for sequences in (10, 10**6):
        batches = [evaluation_batches(loader, sequences) for loader in loaders]
        assert len({len(of_rank) for of_rank in batches}) == 1
        rows = [row for of_rank in batches for batch in of_rank for row in batch.token_ids.tolist() if any(row)]
        assert len(rows) == min(sequences, len(loaders[0]))
        assert len({tuple(row) for row in rows}) == len(rows)


def test_evaluation_does_not_depend_on_the_seed_of_the_run(prepared_shards: Path) -> None:
    (first,), (second,) = (evaluation_batches(open_split(prepared_shards, seed=seed), 4) for seed in (1, 2))
    assert torch.equal(first.token_ids, second.token_ids)


def test_another_tokenizer_than_the_shards_were_made_with_is_refused(prepared_shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(prepared_shards, copy)
    manifest_path = copy / "train" / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest_path.write_text(json.dumps(manifest | {"tokenizer_sha256": "0" * 64}))
    with pytest.raises(ShardError, match="another tokenizer"):
        open_split(copy)


def test_shards_cut_with_another_version_of_sentencepiece_are_refused(prepared_shards: Path, tmp_path: Path) -> None:
    """Also beside a released tokenizer, which says no version."""
    copy = tmp_path / "shards"
    shutil.copytree(prepared_shards, copy)
    (copy / "tokenizer" / "metadata.json").unlink()
    open_split(copy)
    manifest_path = copy / "train" / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    assert manifest["sentencepiece_version"]
    manifest_path.write_text(json.dumps(manifest | {"sentencepiece_version": "0.1.99"}))
    expected = (
        f"{manifest_path}: tokens cut with sentencepiece 0.1.99, installed is .*; pip install sentencepiece==0.1.99"
    )
    with pytest.raises(ShardError, match=expected):
        open_split(copy)


def test_a_flipped_bit_is_found_at_the_start_by_file_name(prepared_shards: Path, tmp_path: Path) -> None:
    """R7."""
    copy = tmp_path / "shards"
    shutil.copytree(prepared_shards, copy)
    victim = copy / "train" / "00000.bin"
    content = bytearray(victim.read_bytes())
    content[100] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ShardError, match=r"00000\.bin"):
        open_split(copy)


def test_a_vocabulary_too_small_for_the_tokens_is_refused_with_the_number_that_works(prepared_shards: Path) -> None:
    config = DataConfig(shards=prepared_shards, sequence_length=64)
    needed = Tokenizer.load(prepared_shards / "tokenizer").vocabulary_size
    with pytest.raises(ConfigError, match=rf"model\.vocab_size 50 .* give {needed} or more"):
        MaskedLoader(
            prepared_shards / "train", config, seed=1, micro_sequences=1, rank=0, world_size=1, model_vocab_size=50
        )
