"""The run: read this file first."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from deberta_scale.config import RunConfig
from deberta_scale.data.loader import StepData
from deberta_scale.kernels.choice import choose
from deberta_scale.train import checkpoint, distributed, run_directory, watchdog
from deberta_scale.train import engine as engines
from deberta_scale.train.announcement import epochs_in_words
from deberta_scale.train.checkpoint_writer import KeepPolicy, SaveError, Saver
from deberta_scale.train.distributed import AgreedError, Launch
from deberta_scale.train.engine_json import deepspeed_json
from deberta_scale.train.engine_update import weights_are_finite
from deberta_scale.train.evaluation import EvaluationStopped
from deberta_scale.train.guards import DivergedError, GoBack, Guards, NothingToPredictError, jump_after_resume
from deberta_scale.train.initial_weights import set_weights
from deberta_scale.train.interrupt import Interrupt
from deberta_scale.train.metrics import RunLog, Totals, append_event, measure_matmul_flops, progress_line
from deberta_scale.train.objective import Objective
from deberta_scale.train.schedule import learning_rate_factor
from deberta_scale.train.speed import speed_of
from deberta_scale.train.state import GuardState, TrainState
from deberta_scale.train.step import train_step

EXIT_DONE, EXIT_REQUEUE = 0, 75
_ADVICE = "Lower optimizer.learning_rate, lengthen schedule.warmup_steps, or use engine.precision bf16 instead of fp16"


def join(launch: Launch, hang_seconds: float, run_dir: Path) -> torch.device:
    """Meet the other ranks, under a watchdog that writes to the events of `run_dir`, and share the cores with them;
    returns this rank's device. A process that has met them may do so again for its next run."""
    watchdog.start(launch.rank, launch.world_size, hang_seconds, run_dir)
    watchdog.enter("start: joining the other ranks")
    device = engines.start_process_group(launch, 2 * hang_seconds)
    distributed.set_threads(launch)
    return device


def interrupt_in(directory: Path, launch: Launch, max_hours: float | None) -> Interrupt:
    """What asks to stop, with the file `STOP` in this directory."""
    return Interrupt(directory / "STOP" if launch.is_main else None, max_hours)


class Run:
    """One process's part of a run, from the config to the last checkpoint."""

    def __init__(
        self, config: RunConfig, launch: Launch, objective: Objective, interrupt: Interrupt | None = None
    ) -> None:
        """Build data, model and engine, and resume or begin with the objective's weights. `interrupt` asks to stop; by
        default signals, the run's time and `STOP` in its directory do.

        Raises AgreedError when one of the ranks cannot start; the events tell why.
        """
        self.config, self.objective = config, objective
        self.interrupt = interrupt or interrupt_in(config.run_dir, launch, config.train.max_hours)
        try:
            self._start(launch)
        except AgreedError as error:
            if launch.is_main:
                with contextlib.suppress(OSError):  # a run directory that cannot be written may be the reason
                    append_event(config.run_dir, "refused", error=str(error))
            raise

    def _start(self, launch: Launch) -> None:
        config, objective = self.config, self.objective
        device = join(launch, config.guards.hang_seconds, config.run_dir)
        watchdog.enter("start: opening the data")
        self.interrupt.listen()  # what is asked for during the start is done after the first step
        distributed.together(lambda: self._open(launch))
        watchdog.enter("start: choosing a checkpoint")
        leftovers = distributed.on_main(lambda: run_directory.prepare(config, objective.tokenizer))
        chosen, notes = distributed.on_main(lambda: checkpoint.choose(config))
        notes = leftovers + notes

        watchdog.enter("start: building the engine")
        with torch.device("meta"):
            model = objective.build_model()
        weights = None
        if chosen is None:
            weights, told = distributed.together(lambda: objective.initial_weights(model))
            notes += told
        self.engine = engines.build_engine(config, model, launch, device)
        if weights is not None:
            set_weights(self.engine, weights)
        torch.manual_seed(config.seed + 1 + launch.rank)  # dropout differs between ranks
        self.step, self.guards = 0, Guards(config.guards, GuardState())
        if chosen is not None:
            watchdog.enter("start: reading the checkpoint")
            notes += self._resume(chosen)

        engine_json = deepspeed_json(config, launch.world_size, device.type == "cuda")
        described = {"data": objective.facts_of_data(), "deepspeed": engine_json}
        distributed.on_main(lambda: run_directory.describe(config, launch, described))
        self.totals = Totals(device)
        self.peak_flops = launch.world_size * measure_matmul_flops(device, engines.DTYPES[config.engine.precision])
        self.log = distributed.together(lambda: RunLog(config.run_dir, launch.is_main, self.step))
        self.gradient_norm: float | None = None
        self.ended = objective.ended(self.step)
        keep = KeepPolicy(config.train.keep_last, config.train.keep_every_steps, best=self._best(), in_use=chosen)
        facts = {**self._facts, "resume": config.resume}
        self.saver = Saver(config.run_dir, facts, keep, self.log, launch.local_world_size)
        self.resumed_from = chosen
        self._announce("start" if chosen is None else "resume", launch, notes)

    def _open(self, launch: Launch) -> None:
        """The data, when the ranks have just met and nothing is written yet."""
        self.objective.open(launch)

    @property
    def _facts(self) -> dict[str, Any]:
        return {"zero_stage": self.config.engine.zero_stage, "precision": self.config.engine.precision}

    def _resume(self, chosen: Path) -> list[str]:
        """Stand where the checkpoint was made. Returns how this run differs from the one that made it, for people."""
        state = distributed.together(lambda: TrainState.read(chosen / "state.json"))
        distributed.together(lambda: self.objective.check_continues(state))
        notes = checkpoint.load(self.engine, chosen, self._facts, self.config.seed)
        self.step, self.guards = state.step, Guards(self.config.guards, state.guards)
        return notes

    def _announce(self, what: str, launch: Launch, notes: list[str]) -> None:
        start = {"step": self.step, "ranks": launch.world_size, "steps": self.config.train.steps, "notes": notes}
        self.log.event(what, **start)
        for line in [*notes, *self.objective.start_lines(self.step, launch.world_size)]:
            self.log.say(line)
        engine = self.config.engine
        self.log.say(
            f"engine: ZeRO stage {engine.zero_stage}, {engine.precision}, activation checkpointing"
            f" {engine.activation_checkpointing}, {self.engine.device}, {torch.get_num_threads()} thread(s) a rank;"
            f" matrix products reach {self.peak_flops / 1e12:.2f} TFLOP/s over all ranks, the 100 % of MFU"
        )
        kernel = choose(self.engine.device, engines.DTYPES[engine.precision], all_places_ask=True)
        self.log.say(f"attention: kernel {kernel.name}, since {kernel.why}")

    def go(self) -> int:
        """Train to the last step or to a stop; returns the exit code.

        Raises on all ranks DivergedError when training breaks and SaveError when saving does; the older checkpoints are
        intact.
        """
        with contextlib.closing(self.log):
            try:
                stop = self._make_up_evaluation() or self._train_with_ways_back()
            except Exception as error:
                self.log.event("failed", step=self.step, kind=type(error).__name__, error=str(error))
                if isinstance(error, AgreedError) and not isinstance(error, SaveError):
                    self.saver.wait()  # all ranks finish their save in progress
                raise
            if stop:
                return self._stop(stop)
            self.log.event("finished", step=self.step, early=self.ended)
            self.log.say(f"finished at step {self.step}: {checkpoint.checkpoint_dir(self.config.run_dir, self.step)}")
        return EXIT_DONE

    def _train_with_ways_back(self) -> str | None:
        """Train, going back to a checkpoint whenever the guards want it; returns why to stop, or None."""
        while True:
            with contextlib.closing(self.objective.steps(self.step)) as steps:
                try:
                    return self._train(steps)
                except GoBack as reason:
                    self._go_back(str(reason))

    def _go_back(self, reason: str) -> None:
        """To the newest complete checkpoint, from which the steps that failed are passed over. Raises DivergedError on
        all ranks when there is none, or when that has not helped before."""
        watchdog.enter("going back to a checkpoint")
        self.saver.wait()
        chosen, notes = distributed.on_main(self._way_back)
        at, failed_step, guards = f"step {self.step}: {reason}", self.step, self.guards
        if chosen is None:
            nothing = "; ".join([f"{at}, and there is no checkpoint to go back to", *notes])
            raise DivergedError(f"{nothing}. {_ADVICE}")
        self._resume(chosen)
        try:
            failed = guards.go_back(failed_step, self.step, self.guards.state)
        except DivergedError as error:
            raise DivergedError(f"{at}; {error}. {_ADVICE}; the newest checkpoint, {chosen}, is intact") from None
        self.guards, self.totals = guards, Totals(self.engine.device)
        self.saver.go_on_from(chosen)
        distributed.together(lambda: self.log.rewind(self.step))
        samples = [self._samples_of(step) for step in failed]
        self.log.event("went back", to_step=self.step, reason=at, passed_over=failed, samples=samples, notes=notes)
        self.log.say(f"{at}; went back to {chosen.name}; steps passed over from there: {failed or 'none'}")

    def _way_back(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose digests agree, this run's or the one it began with; what to tell of others."""
        notes: list[str] = []
        own = checkpoint.complete_checkpoints(self.config.run_dir)
        first = [self.resumed_from] if self.resumed_from is not None and self.resumed_from not in own else []
        return checkpoint.first_whole([*own, *first], notes.append), notes

    def _samples_of(self, step: int) -> list[int]:
        """The first and the last sample of a step, the first step being 1."""
        sequences = self.config.batch.sequences
        return [(step - 1) * sequences, step * sequences - 1]

    def _train(self, data: Iterator[StepData]) -> str | None:
        """Step after step to the last, or until a rank wants to stop; returns why, or None."""
        train = self.config.train
        interval_start, interval_steps = time.perf_counter(), 0
        stop = None
        while self.step < train.steps and not stop and not self.ended:
            watchdog.enter("data", self.step + 1)
            interval_steps += self._guarded_step(next(data))
            watchdog.enter("agreement")
            if self.step == train.steps or self.step % train.log_every_steps == 0:
                self._log_interval(interval_steps, interval_start)
                interval_start, interval_steps = time.perf_counter(), 0
            pause = time.perf_counter()
            stop = self._between_steps()
            interval_start += time.perf_counter() - pause
        return stop

    def _between_steps(self) -> str | None:
        """Save and evaluate when due. Returns why to stop, or None; before a stop and after the last step everything
        is saved."""
        last = self.step == self.config.train.steps
        stop = self._agree()
        if last or self.step % self.config.train.save_every_steps == 0:
            self._save()
        if self._evaluation_is_due():
            stop = self._evaluate(stop)
        if last or stop or self.ended:
            self._save()
            self.saver.finish()
        return stop

    def _agree(self) -> str | None:
        """What ranks tell each other at every step boundary and evaluation batch: whether one of them wants to stop,
        and how far their save is. Returns the reason of the lowest rank that wants to stop."""
        reason = self.interrupt.reason()
        num_stopping, *of_save = distributed.sum_over_ranks([reason is not None, *self.saver.progress()])
        self.saver.advance(*of_save)
        self.interrupt.note_save_seconds(self.saver.slowest_seconds)
        return next(filter(None, distributed.gather_objects(reason))) if num_stopping else None

    def _guarded_step(self, data: StepData) -> bool:
        """Train on the samples of a step, or pass over them; returns whether they were read. Raises GoBack on all ranks
        when too many steps failed."""
        factor = learning_rate_factor(self.config.schedule, self.step, self.config.train.steps)
        self.learning_rate = self.config.optimizer.learning_rate * factor
        number = self.step + 1
        if self.guards.passes_over(number):
            self.step = number
            self.guards.note_passed_over()
            self.log.event("step passed over", step=number, samples=self._samples_of(number))
            return False
        try:
            outcome = train_step(self.engine, data, self.learning_rate, self.totals, self.guards.largest_norm)
        except NothingToPredictError:
            raise NothingToPredictError(f"step {number}: {self.objective.without_targets}") from None
        self.step = number
        if outcome.skip is None:
            self.gradient_norm = outcome.norm
        elif not outcome.skip.is_overflow:
            why, value = outcome.skip.why, str(outcome.skip.value)
            self.log.event("step skipped", step=number, samples=self._samples_of(number), why=why, value=value)
            self.log.say(f"step {number} skipped: {why}")
        self.guards.note(number, outcome)
        return True

    def _log_interval(self, num_steps: int, start: float) -> None:
        interval = self.totals.read()
        if not interval.predicted_tokens:
            return  # every step was skipped, which the events tell
        flops = num_steps * self.objective.flops_per_step
        speed = speed_of(interval, num_steps, flops / self.peak_flops, time.perf_counter() - start)
        values = {
            "loss": interval.loss,
            "accuracy": interval.accuracy,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "skipped_steps": self.guards.state.num_skipped,
            "overflowed_steps": self.guards.state.num_overflowed,
            **speed,
            "samples_seen": self.step * self.config.batch.sequences,
            "sample_digest": interval.digest,
        }
        epochs = self.objective.epochs_at(self.step)
        values |= {f"epochs/{name}" if name else "epochs": value for name, value in epochs.items()}
        self.log.scalars("train", self.step, values)
        remaining = (self.config.train.steps - self.step) * speed["seconds_per_step"]
        of_sources = f"  epochs {epochs_in_words(epochs)}" if len(epochs) > 1 else ""
        self.log.say(progress_line(self.step, self.config.train.steps, values, remaining) + of_sources)
        if warning := jump_after_resume(self.log.take_last_loss(), interval.loss):
            self.log.event("loss jumped", step=self.step, message=warning)
            self.log.say(warning)

    def _evaluation_is_due(self) -> bool:
        train = self.config.train
        return self.step > 0 and (self.step == train.steps or self.step % train.evaluate_every_steps == 0)

    def _make_up_evaluation(self) -> str | None:
        """Evaluate if the run stopped before it had done so at this step. Returns why to stop, or None."""
        due = self._evaluation_is_due() and not self.log.evaluated(self.step)
        return self._evaluate(None) if distributed.gather_objects(due)[0] else None

    def _evaluate(self, stop: str | None) -> str | None:
        """Evaluate, unless there is a reason to stop, up to the moment when there is one; returns it."""
        try:
            if stop:
                raise EvaluationStopped(stop)
            judgement = self.objective.evaluate(self.engine, self.step, self._agree)
        except EvaluationStopped as reason:
            self.log.event("evaluation cut short", step=self.step, reason=str(reason))
            self.log.say(f"evaluation at step {self.step} cut short ({reason}); the next start makes up for it")
            return str(reason)
        self.log.scalars("evaluation", self.step, judgement.values)
        self.log.say(f"held out at step {self.step}: {judgement.line}")
        if (best := self._best()) is not None:
            self.saver.keep_best(best)
        self.ended = self.objective.ended(self.step)
        return None

    def _best(self) -> Path | None:
        """The checkpoint that stays as the best one, if any is: it may still be written."""
        step = self.objective.best_step(self.step)
        return None if step is None else checkpoint.checkpoint_dir(self.config.run_dir, step)

    def _save(self) -> None:
        """Begin to save this step, unless that was done."""
        if self.saver.has(self.step):
            return
        watchdog.enter("save")
        if not weights_are_finite(self.engine):
            raise GoBack("weights are not finite, and are not saved")
        self.saver.begin(self.engine, self.objective.state_after(self.step, self.guards.state))

    def _stop(self, reason: str) -> int:
        self.interrupt.consume()
        self.log.event("stopped", step=self.step, reason=reason)
        self.log.say(f"stopped at step {self.step} ({reason}); the same command goes on from there")
        return EXIT_REQUEUE
