"""The run: read this file first."""

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deberta_scale import config as configuration
from deberta_scale.config import Config
from deberta_scale.data.loader import MaskedLoader, StepData
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.model.sizes import parameter_count, training_flops_per_sequence
from deberta_scale.train import checkpoint, distributed
from deberta_scale.train import engine as engines
from deberta_scale.train.distributed import Launch
from deberta_scale.train.guards import FiniteCheck, NonFiniteError, NothingToPredictError
from deberta_scale.train.initial_weights import InitialModel, take_weights
from deberta_scale.train.interrupt import Interrupt
from deberta_scale.train.metrics import Interval, RunLog, Totals, duration, measure_matmul_flops, progress_line, sum_of
from deberta_scale.train.run_directory import prepare
from deberta_scale.train.schedule import learning_rate_factor
from deberta_scale.train.state import TrainState, trajectory_of

EXIT_DONE, EXIT_REQUEUE = 0, 75
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pretrain_step(engine: Any, data: StepData, learning_rate: float, totals: Totals) -> None:
    """One optimizer step on this rank's micro-batches, together with all other ranks.

    The loss is the mean over the predicted tokens of all ranks and micro-batches: sums travel, the division happens
    once. Raises, on all ranks and before the update, NonFiniteError when the loss of one of them is not finite and
    NothingToPredictError when no rank has a token to predict.
    """
    (predicted_in_step,) = distributed.sum_over_ranks([data.predicted_tokens])
    if not predicted_in_step:
        raise NothingToPredictError("no row of this step has a token that may be masked")
    scale = engine.world_size / predicted_in_step  # DeepSpeed averages gradients over ranks
    engines.set_learning_rate(engine, learning_rate)
    step_loss = torch.zeros((), device=engine.device)
    for batch in data.micro_batches:
        loss_sum, predicted, correct = engine(batch.to(engine.device))
        step_loss += loss_sum.detach()
        finite = FiniteCheck(step_loss)
        engine.backward(loss_sum * scale, scale_wrt_gas=False)
        if batch is data.micro_batches[-1]:
            finite.raise_unless_finite()
        engine.step()  # updates at the last micro-batch, counts at the others
        totals.add(loss_sum, predicted, correct)
    totals.add_read(data.useful_tokens, sum(b.token_ids.numel() for b in data.micro_batches), data.digest)


@torch.no_grad()
def evaluate(
    engine: Any, loader: MaskedLoader, sequences: int, shares: dict[str, float] | None = None
) -> dict[str, Interval]:
    """Sums over the first `sequences` rows of the held-out split, always with the same masks; of a mixture by source,
    `shares` of the rows from each."""
    totals = Totals(engine.device)
    engine.eval()
    intervals = {}
    for part in loader.evaluation_parts(sequences, shares):
        for batch in part.batches:
            totals.add(*engine(batch.to(engine.device)))
        intervals[part.source] = totals.read()
    engine.train()
    return intervals


class Run:
    """One process's part of a pretraining run, from the config to the last checkpoint."""

    def __init__(
        self, config: Config, launch: Launch, open_initial: Callable[[Path], InitialModel] | None = None
    ) -> None:
        """Build data, model and engine, and resume or, with `init_from`, take weights through `open_initial`.

        Raises ValueError on all ranks when one of them cannot start.
        """
        self.config = config
        device = engines.start_process_group(launch)
        distributed.set_threads(launch)
        self.training_data = distributed.together(lambda: self._open("train", launch))
        self.held_out = distributed.together(lambda: self._open("validation", launch))
        distributed.on_main(lambda: prepare(config, launch))
        chosen, notes = distributed.on_main(lambda: _choose_checkpoint(config))

        torch.manual_seed(config.seed)
        checkpointing = config.engine.activation_checkpointing == "non_reentrant"
        model = PretrainingModel(config.model, checkpoint_activations=checkpointing)
        if chosen is None and config.init_from is not None:
            assert open_initial is not None
            begin_with = partial(open_initial, config.init_from)
            notes += distributed.together(lambda: take_weights(model, begin_with(), config.data.tokenizer_dir))
        self.engine = engines.build_engine(config, model, launch, device)
        torch.manual_seed(config.seed + 1 + launch.rank)  # dropout differs between ranks
        self.step = 0 if chosen is None else self._resume(chosen)
        self.saved_step = self.step if chosen else None

        self.interrupt = Interrupt(config.run_dir, config.train.max_hours)
        self.interrupt.listen()
        self.totals = Totals(device)
        self.peak_flops = launch.world_size * measure_matmul_flops(device, _DTYPES[config.engine.precision])
        self.log = RunLog(config.run_dir, launch.is_main, self.step)
        self._announce(launch, notes)

    def _open(self, split: str, launch: Launch) -> MaskedLoader:
        loader = MaskedLoader(
            self.config.data.split_dirs(split),
            self.config.data,
            seed=self.config.seed,
            micro_sequences=self.config.batch.micro_sequences,
            rank=launch.rank,
            world_size=launch.world_size,
            model_vocab_size=self.config.model.vocab_size,
            sequences_per_step=self.config.batch.sequences,
        )
        if split == "train":
            loader.check_repetition(self.config.train.steps, self.config.batch.sequences)
        return loader

    def _resume(self, chosen: Path) -> int:
        state = distributed.together(lambda: TrainState.read(chosen / "state.json"))
        data = self.training_data
        distributed.together(lambda: state.check_continues(self.config, data.fingerprint, data.source_fingerprints))
        distributed.together(lambda: checkpoint.load(self.engine, chosen))
        return state.step

    def _announce(self, launch: Launch, notes: list[str]) -> None:
        model, data = self.config.model, self.training_data
        start = {"step": self.step, "ranks": launch.world_size, "steps": self.config.train.steps, "notes": notes}
        self.log.event("resume" if self.saved_step is not None else "start", **start)
        for note in notes:
            self.log.say(note)
        self.log.say(f"model: {parameter_count(model).total:,} parameters, {model.num_hidden_layers} layers")
        self.log.say(f"data: {data.describe()}")
        samples = [step * self.config.batch.sequences for step in (self.step, self.config.train.steps)]
        done, planned = map(data.epochs_read, samples)
        self.log.say(f"epochs: {_epochs(planned)} in the whole run, {_epochs(done)} of them done")
        self.log.say(
            f"held out: {self.held_out.describe()}; its unigram entropy, the loss of guessing by frequency alone, is"
            f" {self.held_out.unigram_entropy_nats:.4f} nats"
        )
        self.log.say(f"batch: {configuration.describe(self.config, launch.world_size)}")
        engine = self.config.engine
        self.log.say(
            f"engine: ZeRO stage {engine.zero_stage}, {engine.precision}, activation checkpointing"
            f" {engine.activation_checkpointing}, {self.engine.device}, {torch.get_num_threads()} thread(s) a rank;"
            f" matrix products reach {self.peak_flops / 1e12:.2f} TFLOP/s over all ranks, the 100 % of MFU"
        )

    def go(self) -> int:
        """Train to the last step or to a stop; returns the exit code. Raises NonFiniteError when the loss breaks."""
        train, sequences = self.config.train, self.config.batch.sequences
        interval_start, interval_steps = time.perf_counter(), 0
        data = self.training_data.steps(self.step * sequences, sequences)
        with contextlib.closing(self.log), contextlib.closing(data) as steps:
            while self.step < train.steps:
                self._guarded_step(next(steps))
                interval_steps += 1
                last = self.step == train.steps
                if last or self.step % train.log_every_steps == 0:
                    self._log_interval(interval_steps, interval_start)
                    interval_start, interval_steps = time.perf_counter(), 0
                pause = time.perf_counter()
                stop = distributed.first_given(self.interrupt.reason())
                if last or self.step % train.evaluate_every_steps == 0:
                    self._evaluate()
                if last or stop or self.step % train.save_every_steps == 0:
                    self._save()
                if stop and not last:
                    return self._stop(stop)
                interval_start += time.perf_counter() - pause
            self.log.event("finished", step=self.step)
            self.log.say(f"finished at step {self.step}: {checkpoint.checkpoint_dir(self.config.run_dir, self.step)}")
        return EXIT_DONE

    def _guarded_step(self, data: StepData) -> None:
        factor = learning_rate_factor(self.config.schedule, self.step, self.config.train.steps)
        self.learning_rate = self.config.optimizer.learning_rate * factor
        try:
            pretrain_step(self.engine, data, self.learning_rate, self.totals)
        except NothingToPredictError as error:
            raise NothingToPredictError(
                f"step {self.step + 1}: {error}; look at the shards with data_prep/inspect_shards.py: its documents"
                " hold nothing but unknown characters, or are too few"
            ) from None
        except NonFiniteError as error:
            self.log.event("not finite", step=self.step + 1)
            raise NonFiniteError(
                f"step {self.step + 1}: {error}; all ranks stopped before the update. Lower optimizer.learning_rate,"
                " lengthen schedule.warmup_steps, or use engine.precision bf16 instead of fp16; the newest checkpoint"
                " is intact"
            ) from None
        self.step += 1

    def _log_interval(self, num_steps: int, start: float) -> None:
        interval = self.totals.read()
        seconds = time.perf_counter() - start
        data, batch = self.config.data, self.config.batch
        flops_per_sequence = training_flops_per_sequence(
            self.config.model, data.sequence_length, data.masking.probability, batch.micro_sequences
        )
        flops = num_steps * batch.sequences * flops_per_sequence
        values = {
            "loss": interval.loss,
            "accuracy": interval.accuracy,
            "learning_rate": self.learning_rate,
            "gradient_norm": engines.gradient_norm(self.engine),
            "read_tokens_per_second": interval.read_tokens / seconds,
            "useful_tokens_per_second": interval.useful_tokens / seconds,
            "predicted_tokens_per_second": interval.predicted_tokens / seconds,
            "mfu": flops / seconds / self.peak_flops,
            "seconds_per_step": seconds / num_steps,
            "samples_seen": self.step * self.config.batch.sequences,
            "sample_digest": interval.digest,
        }
        epochs = self.training_data.epochs_read(self.step * batch.sequences)
        values |= {f"epochs/{name}" if name else "epochs": value for name, value in epochs.items()}
        self.log.scalars("train", self.step, values)
        remaining = (self.config.train.steps - self.step) * seconds / num_steps
        of_sources = f"  epochs {_epochs(epochs)}" if len(epochs) > 1 else ""
        self.log.say(progress_line(self.step, self.config.train.steps, values, remaining) + of_sources)

    def _evaluate(self) -> None:
        start = time.perf_counter()
        train, mixture = self.config.train, self.config.data.mixture
        shares = None if mixture is None else mixture.share_of_run(train.steps)
        by_source = evaluate(self.engine, self.held_out, train.evaluate_sequences, shares)
        result = sum_of(by_source.values())
        values = {"loss": result.loss, "perplexity": result.perplexity, "masked_accuracy": result.accuracy}
        values["unigram_entropy"] = self.held_out.unigram_entropy_nats
        values |= {f"loss/{name}": part.loss for name, part in by_source.items() if name}
        self.log.scalars("evaluation", self.step, values | {"predicted_tokens": result.predicted_tokens})
        of_sources = "".join(f"  {name} {part.loss:.4f}" for name, part in by_source.items() if name)
        self.log.say(
            f"held out at step {self.step}: loss {result.loss:.4f}  perplexity {result.perplexity:,.1f}"
            f"  masked accuracy {result.accuracy:.3f}  ({result.predicted_tokens:,} predictions,"
            f" {duration(time.perf_counter() - start)}){of_sources}"
        )

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        norm = engines.gradient_norm(self.engine)
        if norm is not None and not math.isfinite(norm) and self.config.engine.precision != "fp16":
            raise NonFiniteError(f"step {self.step}: the gradient norm is {norm}; nothing was saved")
        start = time.perf_counter()
        state = TrainState(
            step=self.step,
            samples_seen=self.step * self.config.batch.sequences,
            data_fingerprint=self.training_data.fingerprint,
            source_fingerprints=self.training_data.source_fingerprints,
            trajectory=trajectory_of(self.config),
        )
        facts = {"zero_stage": self.config.engine.zero_stage, "precision": self.config.engine.precision}
        path = checkpoint.save(self.engine, self.config.run_dir, state, facts, self.config.train.keep_checkpoints)
        self.saved_step = self.step
        seconds = time.perf_counter() - start
        self.interrupt.note_save_seconds(seconds)
        self.log.event("saved", step=self.step, seconds=round(seconds, 3), path=path.name)
        self.log.say(f"saved {path} in {seconds:.1f} s")

    def _stop(self, reason: str) -> int:
        self.interrupt.consume()
        self.log.event("stopped", step=self.step, reason=reason)
        self.log.say(f"stopped at step {self.step} ({reason}); the same command goes on from there")
        return EXIT_REQUEUE


def _epochs(by_source: dict[str, float]) -> str:
    return ", ".join(f"{name} {epochs:.2f}".strip() for name, epochs in by_source.items())


def _choose_checkpoint(config: Config) -> tuple[Path | None, list[str]]:
    """Where to start from, and what to tell about it. On one rank; the others are told."""
    if config.resume == "never":
        return None, ["starting fresh (resume: never)"]
    if config.resume != "auto":
        path = Path(config.resume)
        checkpoint.verify(path)
        return path, [f"resuming from {path}, as resume says"]
    notes: list[str] = []
    newest = checkpoint.newest_complete(config.run_dir, notes.append)
    if newest is None:
        return None, [*notes, f"starting fresh: no complete checkpoint in {config.run_dir / 'checkpoints'}"]
    return newest, [*notes, f"resuming from {newest}, the newest complete checkpoint; all digests agree"]
