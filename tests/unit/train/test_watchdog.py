"""Which rank the watchdog names."""

import json
from dataclasses import asdict

import pytest

from deberta_scale.train import watchdog
from deberta_scale.train.watchdog import Place, Report, describe, furthest_behind


def at(step: int, phase: str, number: int, waits_in: str | None = None) -> Report:
    return Report(Place(step, phase, number), 61.0, waits_in)


def test_the_rank_that_came_least_far_is_behind() -> None:
    """R27: all others wait for it."""
    others = at(3, "update", 14, "all_reduce")
    assert furthest_behind({0: others, 1: at(3, "data", 11), 2: others}) == [1]


def test_of_ranks_at_one_place_those_that_wait_for_others_are_not_behind() -> None:
    """R27: a rank that hangs in a phase leaves the others in the same phase, in a collective."""
    waiting = at(3, "forward", 12, "all_gather")
    assert furthest_behind({0: waiting, 1: at(3, "forward", 12), 2: waiting}) == [1]
    assert furthest_behind({0: waiting, 1: waiting}) == [0, 1]


@pytest.mark.parametrize(
    ("others", "lost", "expected"),
    [
        (
            {1: at(3, "data", 11)},
            {},
            "rank 0 makes no progress, at step 3, update, for 61 s, waiting in all_reduce; furthest behind: rank 1, at"
            " step 3, data, for 61 s",
        ),
        (
            {},
            {1: Place(3, "forward", 12), 2: None},
            "rank 0 makes no progress, at step 3, update, for 61 s, waiting in all_reduce; not heard of: rank 1 (last"
            " at step 3, forward), rank 2 (never)",
        ),
    ],
)
def test_the_message_names_rank_step_and_phase(
    others: dict[int, Report], lost: dict[int, Place | None], expected: str
) -> None:
    """R27."""
    assert describe(0, at(3, "update", 14, "all_reduce"), others, lost) == expected


def test_many_ranks_are_counted() -> None:
    own = at(3, "update", 14, "all_reduce")
    assert describe(0, own, {}, dict.fromkeys(range(1, 100))).endswith("rank 8 (never) and 91 more")


def test_a_report_travels_as_json() -> None:
    report = at(3, "data", 11)
    assert Report.read(json.dumps(asdict(report)).encode()) == report


def test_entering_a_phase_keeps_the_step_until_another_is_given() -> None:
    watchdog.enter("data", 7)
    before = watchdog.own_report()
    watchdog.enter("forward")
    after = watchdog.own_report()
    assert str(before.place) == "step 7, data" and str(after.place) == "step 7, forward"
    assert after.place.number == before.place.number + 1
    assert after.waits_in is None
