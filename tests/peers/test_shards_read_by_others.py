"""Our shards are read by DeepSpeed's own reader of the Megatron layout, token for token."""

from pathlib import Path

import numpy as np
import pytest

from deberta_scale.data.shards import ShardSet


@pytest.mark.parametrize("split", ["train", "validation"])
def test_deepspeed_reads_the_same_tokens(prepared_shards: Path, split: str) -> None:
    from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset

    ours = ShardSet(prepared_shards / split)
    theirs = MMapIndexedDataset(str(prepared_shards / split / "00000"), skip_warmup=True)
    assert len(theirs) == ours.num_sequences
    assert theirs.sizes.tolist() == ours.sequence_lengths.tolist()
    assert theirs.doc_idx.tolist() == ours.document_index.tolist()
    start = 0
    for number, length in enumerate(ours.sequence_lengths.tolist()):
        assert np.array_equal(theirs[number], ours.read(start, length))
        start += length
