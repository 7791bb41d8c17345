"""How fast a run is, from the sums of an interval and the time it took."""

from deberta_scale.config import Config
from deberta_scale.model.sizes import training_flops_per_sequence
from deberta_scale.train.metrics import Interval


def speed_of(config: Config, interval: Interval, num_steps: int, seconds: float, peak_flops: float) -> dict[str, float]:
    """Values for the log of `num_steps` steps that took `seconds` together. `mfu` is the share of `peak_flops`, which
    all ranks reach together in matrix products."""
    data, batch = config.data, config.batch
    flops_per_sequence = training_flops_per_sequence(
        config.model, data.sequence_length, data.masking.probability, batch.micro_sequences
    )
    return {
        "read_tokens_per_second": interval.read_tokens / seconds,
        "useful_tokens_per_second": interval.useful_tokens / seconds,
        "predicted_tokens_per_second": interval.predicted_tokens / seconds,
        "mfu": num_steps * batch.sequences * flops_per_sequence / seconds / peak_flops,
        "seconds_per_step": seconds / num_steps,
    }
