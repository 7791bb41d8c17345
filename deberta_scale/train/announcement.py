"""What a run says of its model, data and batch when it starts."""

from collections.abc import Iterator

from deberta_scale import config as configuration
from deberta_scale.config import Config
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.model.sizes import parameter_count


def start_lines(
    config: Config, step: int, world_size: int, training: MaskedLoader, held_out: MaskedLoader
) -> Iterator[str]:
    """Lines for people, when `step` steps are done."""
    yield f"model: {parameter_count(config.model).total:,} parameters, {config.model.num_hidden_layers} layers"
    yield f"data: {training.describe()}"
    done, planned = (training.epochs_read(steps * config.batch.sequences) for steps in (step, config.train.steps))
    yield f"epochs: {epochs_in_words(planned)} in the whole run, {epochs_in_words(done)} of them done"
    yield (
        f"held out: {held_out.describe()}; its unigram entropy, the loss of guessing by frequency alone, is"
        f" {held_out.unigram_entropy_nats:.4f} nats"
    )
    yield f"batch: {configuration.describe(config, world_size)}"


def epochs_in_words(by_source: dict[str, float]) -> str:
    """Epochs read of each source; the only one has no name."""
    return ", ".join(f"{name} {epochs:.2f}".strip() for name, epochs in by_source.items())
