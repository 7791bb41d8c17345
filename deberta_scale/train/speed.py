"""How fast a run is, from the sums of an interval and the time it took."""

from deberta_scale.train.metrics import Interval


def speed_of(interval: Interval, num_steps: int, ideal_seconds: float, seconds: float) -> dict[str, float]:
    """Values for the log of `num_steps` steps that took `seconds` together, and would take `ideal_seconds` if all ranks
    did matrix products only, as fast as they can: their ratio is `mfu`."""
    return {
        "read_tokens_per_second": interval.read_tokens / seconds,
        "useful_tokens_per_second": interval.useful_tokens / seconds,
        "predicted_tokens_per_second": interval.predicted_tokens / seconds,
        "mfu": ideal_seconds / seconds,
        "seconds_per_step": seconds / num_steps,
    }
