"""Learning-rate shapes."""

from itertools import pairwise

import pytest

from deberta_scale.config import ScheduleConfig
from deberta_scale.train.schedule import learning_rate_factor


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_warmup_reaches_the_peak_and_the_end_reaches_the_final_fraction(name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=10, final_fraction=0.1)
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(factors[:10]))
    assert all(a > b for a, b in pairwise(factors[9:]))


def test_linear_decay_has_no_jump_after_warmup() -> None:
    schedule = ScheduleConfig(warmup_steps=50)
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert factors[49] - factors[50] == pytest.approx(1 / 50)


def test_wsd_stays_at_the_peak_until_its_decay() -> None:
    schedule = ScheduleConfig(name="wsd", warmup_steps=10, decay_steps=20)
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert set(factors[9:80]) == {1.0}
    assert factors[80] == pytest.approx(0.95)
    assert factors[-1] == pytest.approx(0.0)
