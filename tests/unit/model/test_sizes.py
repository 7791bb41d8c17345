"""Closed-form sizes equal the counts of the official classes, to the digits that were noted down."""

import pytest

from deberta_scale.config import ModelConfig
from deberta_scale.model.sizes import SIZES, parameter_count, training_flops_per_sequence

# name: word table, layers and relative table, relative table, head, everything, without head and position table
COUNTS_IN_MILLIONS = {
    "deberta-base": ("38.60", "100.0", "0.79", "0.64", "139.7", "138.6"),
    "deberta-large": ("51.47", "353.7", "1.05", "1.10", "406.8", "405.2"),
    "deberta-xlarge": ("51.47", "706.4", "1.05", "1.10", "759.5", "757.9"),
    "v2-xlarge": ("196.8", "687.8", "0.79", "2.49", "887.9", "884.6"),
    "v2-xxlarge": ("196.8", "1367.8", "0.79", "2.49", "1567.8", "1564.5"),
    "v3-xsmall": ("49.19", "21.49", "0.20", "0.28", "71.2", "70.7"),
    "v3-small": ("98.38", "42.92", "0.39", "0.72", "142.4", "141.3"),
    "v3-base": ("98.38", "85.45", "0.39", "0.72", "184.9", "183.8"),
    "v3-large": ("131.2", "302.8", "0.52", "1.18", "435.7", "434.0"),
    "mdeberta-v3-base": ("192.8", "85.45", "0.39", "0.84", "279.5", "278.2"),
}
"""Counted from the official classes; the V1 rows in their layout with key biases."""


def in_millions(count: int, like: str) -> str:
    """`count` rounded to as many digits as `like` shows."""
    return f"{count / 1e6:.{len(like.partition('.')[2])}f}"


def test_every_released_size_is_known() -> None:
    assert set(SIZES) == set(COUNTS_IN_MILLIONS)


@pytest.mark.parametrize("name", COUNTS_IN_MILLIONS)
def test_counts_are_those_of_the_official_classes(name: str) -> None:
    count, expected = parameter_count(SIZES[name]), COUNTS_IN_MILLIONS[name]
    columns = (
        count.word_embeddings,
        count.encoder + count.relative_table,
        count.relative_table,
        count.head,
        count.total,
        count.released,
    )
    assert tuple(in_millions(*column) for column in zip(columns, expected, strict=True)) == expected


def test_the_parts_add_up() -> None:
    count = parameter_count(SIZES["v2-xxlarge"])
    assert count.total == 1_567_828_068
    assert count.total == sum(vars(count).values())


def test_narrow_word_embeddings_shrink_the_table_and_add_a_projection() -> None:
    wide = ModelConfig(vocab_size=1000, hidden_size=64, num_attention_heads=4)
    narrow = parameter_count(wide.model_copy(update={"embedding_size": 16}))
    assert narrow.word_embeddings == 1000 * 16
    assert narrow.other == 64 * 16 + 2 * 64
    assert narrow.head == 64 * 16 + 16 + 2 * 16 + 1000
    assert narrow.position_embeddings == 512 * 64


def test_the_baseline_has_the_size_of_bert_base() -> None:
    """110.1M in the BERT paper's layout, less its 2 segment embeddings and its pooler, plus the head of MLM."""
    count = parameter_count(ModelConfig(vocab_size=30522, baseline=True))
    assert count.relative_table == 0
    assert count.total - count.head == 109_482_240 - 2 * 768 - (768 * 768 + 768)
    assert count.head == 768 * 768 + 768 + 2 * 768 + 30522


def hand_made(**changes: object) -> ModelConfig:
    return ModelConfig(
        **{
            "vocab_size": 100,
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 64,
            **changes,
        }
    )


def test_flops_of_the_baseline_by_hand() -> None:
    """10 tokens, 2 of them predicted, 8 wide, 16 in the feed-forward: 2 FLOPs a multiply-add, 3 forwards a step."""
    layer = 4 * 10 * 8 * 8 + 2 * 10 * 10 * 8 + 2 * 10 * 8 * 16
    head = 2 * 8 * 8 + 2 * 8 * 100
    assert training_flops_per_sequence(hand_made(baseline=True), 10, 0.2) == pytest.approx(3 * 2 * (2 * layer + head))


def test_flops_with_the_mask_decoder_by_hand() -> None:
    """As above with 32 rows of the relative table: one ordinary layer, then two passes of 2 queries that meet 10."""
    model = hand_made(position_buckets=16, max_relative_positions=64)
    projected_table = 2 * 32 * 8 * 8
    keys = 2 * 10 * 8 * 8

    def queries(number: int) -> int:
        scores_and_values = 2 * number * 10 * 8 + number * 32 * 8 + 32 * 10 * 8
        return 2 * number * 8 * 8 + scores_and_values + 2 * number * 8 * 16

    forward = keys + queries(10) + keys + 2 * queries(2) + 2 * projected_table + 2 * 8 * 8 + 2 * 8 * 100
    assert training_flops_per_sequence(model, 10, 0.2) == pytest.approx(3 * 2 * forward)
    shared = forward - 2 * projected_table * 3 / 4
    assert training_flops_per_sequence(model, 10, 0.2, micro_sequences=4) == pytest.approx(3 * 2 * shared)
