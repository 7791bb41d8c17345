"""A fine-tuning run from its config to an exported model, and a sweep of such runs."""

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path

from deberta_scale.config_finetune import FineTuneConfig
from deberta_scale.convert.consolidate import read_weights
from deberta_scale.convert.finetuned import description_of, export
from deberta_scale.convert.finetuned_source import FineTuned
from deberta_scale.convert.formats import open_source
from deberta_scale.convert.source import Weights
from deberta_scale.finetune.objective import FineTuning, evaluations_in
from deberta_scale.finetune.result import EXPORT_DIR, Result, read_result, settings_of, write_result
from deberta_scale.finetune.sweep import Variation, write_table
from deberta_scale.train import checkpoint, distributed, watchdog
from deberta_scale.train.guards import DivergedError
from deberta_scale.train.interrupt import Interrupt
from deberta_scale.train.launch_environment import Launch
from deberta_scale.train.loop import EXIT_DONE, EXIT_REQUEUE, Run, interrupt_in, join
from deberta_scale.train.metrics import append_event

SweepRun = tuple[Variation, FineTuneConfig]
_OF_TASK_MODEL = "model."


def fine_tune(config: FineTuneConfig, launch: Launch, interrupt: Interrupt | None = None) -> int:
    """Train, export the best checkpoint to RUN_DIR/huggingface, write RUN_DIR/result.json and remove the checkpoints,
    on all ranks together; returns the exit code. A finished run is left as it is.

    Raises AgreedError for whatever the user can put right, DivergedError and SaveError as `Run.go`.
    """
    join(launch, config.guards.hang_seconds, config.run_dir)
    if (found := distributed.on_main(lambda: read_result(config))) is not None:
        if launch.is_main:
            _remove_checkpoints(config.run_dir)
            print(f"finished already: {_told(config, found)}", flush=True)
        return EXIT_DONE
    watchdog.enter("start: reading the task")
    history = distributed.on_main(lambda: evaluations_in(config.run_dir))
    objective = distributed.together(lambda: FineTuning(config, open_source(config.init_from), history))
    run = Run(objective.config, launch, objective, interrupt)
    code = run.go()
    if code != EXIT_DONE:
        return code
    watchdog.enter("export")
    result = distributed.on_main(lambda: conclude(config, objective, run.step))
    if launch.is_main:
        print(_told(config, result), flush=True)
    return EXIT_DONE


def conclude(config: FineTuneConfig, objective: FineTuning, last_step: int) -> Result:
    """Export the best checkpoint that is whole, write the result, remove the checkpoints. On one rank.

    Raises CheckpointError when none is whole, and ConversionError as `export`.
    """
    evaluated = [checkpoint.checkpoint_dir(config.run_dir, step) for step in objective.steps_best_first(last_step)]
    kept = [path for path in evaluated if path.exists()]  # a save may have failed, which the run went on from
    best = checkpoint.first_whole(kept, print)
    if best is None:
        raise checkpoint.CheckpointError(
            f"{config.run_dir / 'checkpoints'} holds no whole checkpoint that was judged, so there is nothing to export"
        )
    step = checkpoint.step_of(best)
    if best != evaluated[0]:
        print(f"{evaluated[0].name} was better than {best.name}, which is exported, but was not saved", flush=True)
    result = Result(
        task=objective.task.name,
        metric=objective.metric,
        values=objective.results_at(step),
        step=step,
        last_step=last_step,
        settings=settings_of(config),
    )
    destination = config.run_dir / EXPORT_DIR
    if destination.exists():  # by a start that was killed before it wrote the result
        shutil.rmtree(destination)
    export(_fine_tuned(config, objective, best, result), destination)
    write_result(config.run_dir, result)
    append_event(config.run_dir, "exported", model=str(destination), step=step)
    _remove_checkpoints(config.run_dir)
    return result


def _fine_tuned(config: FineTuneConfig, objective: FineTuning, best: Path, result: Result) -> FineTuned:
    stored, resolved = read_weights(best), objective.config
    shapes = {name.removeprefix(_OF_TASK_MODEL): shape for name, shape in stored.shapes.items()}
    dropout = resolved.model.hidden_dropout_prob if resolved.head_dropout is None else resolved.head_dropout
    assert resolved.task.max_length is not None
    return FineTuned(
        config=resolved.model,
        weights=Weights(shapes, lambda name: stored.read(_OF_TASK_MODEL + name)),
        description=description_of(objective.task, resolved.task.max_length, resolved.task.stride_tokens),
        tokenizer=config.run_dir / "tokenizer",
        head_dropout=dropout,
        results={name.replace("/", " "): value for name, value in result.values.items()},
    )


def _remove_checkpoints(run_dir: Path) -> None:
    """Of a finished run nothing goes on from them."""
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


def _told(config: FineTuneConfig, result: Result) -> str:
    value = result.values[result.metric]
    return f"{result.metric} {value:.4f} at step {result.step} of {result.last_step}: {config.run_dir / EXPORT_DIR}"


def sweep(directory: Path, runs: Sequence[SweepRun], part: slice, launch: Launch) -> int:
    """Make the runs of this part one after the other and write the table of all that are finished into `directory`,
    after each. A run that diverges is told and left out; returns the exit code.

    Raises AgreedError as `fine_tune`, and when no run of the part could be finished.
    """
    interrupt = interrupt_in(directory, launch, runs[0][1].train.max_hours)
    num_diverged = 0
    for number, (variation, config) in list(enumerate(runs))[part]:
        if launch.is_main:
            print(f"run {number + 1} of {len(runs)}: {variation.name}", flush=True)
        try:
            code = fine_tune(config, launch, interrupt)
        except DivergedError as error:
            code, num_diverged = EXIT_DONE, num_diverged + 1
            if launch.is_main:
                print(f"{variation.name} is left out: {error}", flush=True)
        gc.collect()  # engines refer to themselves
        if code != EXIT_DONE:
            return code
        table = distributed.on_main(lambda: _table(directory, runs))
        if any(distributed.gather_objects(interrupt.reason())):
            interrupt.consume()
            return EXIT_REQUEUE
    if num_diverged == len(runs[part]):
        raise distributed.AgreedError("no run of the sweep could be finished; see above why each diverged")
    if launch.is_main:
        print(f"\n{table}", flush=True)
    return EXIT_DONE


def _table(directory: Path, runs: Sequence[SweepRun]) -> str:
    return write_table(directory, [(variation, read_result(config)) for variation, config in runs])
