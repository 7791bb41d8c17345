"""From a distance to a row of the relative table."""

import math

import pytest
import torch

from deberta_scale.model.relative import log_buckets, relative_rows, rows_by_distance
from tests.rows import small_model_config


def expected_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """The definition, one distance at a time."""
    middle, size = num_buckets // 2, min(abs(distance), max_distance - 1)
    if size > middle:
        size = middle + math.ceil(math.log(size / middle) / math.log((max_distance - 1) / middle) * (middle - 1))
    return int(math.copysign(size, distance))


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(256, 512), (64, 128), (32, 512), (16, 64)])
def test_buckets_follow_the_definition_and_stay_in_the_last_one_beyond_the_range(
    num_buckets: int, max_distance: int
) -> None:
    distances = torch.arange(-2 * max_distance, 2 * max_distance + 1)
    buckets = log_buckets(distances, num_buckets, max_distance).tolist()
    assert buckets == [expected_bucket(d, num_buckets, max_distance) for d in distances.tolist()]
    assert max(buckets) == num_buckets - 1


def test_released_configuration_reads_511_of_its_512_rows() -> None:
    config = small_model_config(position_buckets=256, max_relative_positions=512)
    rows = rows_by_distance(512, config, torch.device("cpu"))
    assert len(rows) == 1023 and len(rows.unique()) == 511 and rows.min() == 1 and rows.max() == 511
    assert rows[511] == 256 and rows[511 + 2] == 258 and rows[511 - 2] == 254


def test_linear_distances_are_clamped_into_the_table() -> None:
    config = small_model_config(position_buckets=0, max_relative_positions=8)
    assert relative_rows(torch.tensor([-20, -8, -7, 0, 7, 8, 20]), config).tolist() == [0, 0, 1, 8, 15, 15, 15]
