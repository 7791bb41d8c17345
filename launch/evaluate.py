"""How good is a fine-tuned model? `evaluate.py MODEL... --task NAME --data DIR`

MODEL is a directory that an export of a fine-tuned model wrote, or any Hugging Face directory with a head for the task
(classification, regression, multiple choice, token classification or question answering), of whatever architecture;
local files only, and no code from them is run. Says the task's metrics, precision, recall and F1 of each class,
calibration and speed, and writes the file that the benchmark takes in.

With --ensemble the models, whose tokenizers may differ, answer together: probabilities are averaged, of regression the
numbers, of questions the probabilities of spans of characters (the 20 likeliest of each model; for all others it gives
0).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.command import positive_int, report, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="directories of fine-tuned models")
    parser.add_argument("--task", required=True, metavar="NAME", help="one of the tasks, such as mnli or squad-2.0")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the task's files")
    parser.add_argument("--split", metavar="NAME", help="default: the task's first split for validation")
    parser.add_argument("--batch", type=positive_int, default=32, metavar="N", help="rows (default: %(default)s)")
    parser.add_argument(
        "--predictions", type=Path, metavar="DIR", help="write the benchmark's file into this directory"
    )
    parser.add_argument("--ensemble", action="store_true", help="also let all models answer together")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return run(lambda: evaluate(parser.parse_args()))


def evaluate(arguments: argparse.Namespace) -> None:
    """Raises ValueError for anything that the user can put right."""
    directories = arguments.models
    _check(directories, arguments)

    from deberta_scale.finetune.readers_split import read_split  # late: torch takes seconds to load
    from deberta_scale.finetune.tasks import task_named

    task = task_named(arguments.task)
    split_name = arguments.split or next(name for name in task.files if name.startswith("validation"))
    split = read_split(task, arguments.data, split_name)
    unlabelled = sum(example.label is None for example in split.examples)
    if unlabelled and arguments.predictions is None:
        raise ValueError(
            f"{arguments.data}: {unlabelled:,} of {len(split.examples):,} examples of {split_name} have no label, so"
            " there is nothing to measure; give --predictions DIR to write what the benchmark takes in"
        )

    from deberta_scale.evaluation.answers import mean_answers
    from deberta_scale.evaluation.measured import measure
    from deberta_scale.evaluation.models import open_model
    from deberta_scale.evaluation.report import facts_of, judge, lines_of

    facts: dict[str, Any] = {"task": task.name, "split": split_name, "examples": len(split.examples)}
    facts |= {"notes": list(split.notes), "models": []}
    lines = [f"{task.name}, {split_name}: {len(split.examples):,} examples", *(f"note: {note}" for note in split.notes)]
    of_models = []
    for directory in directories:
        model = open_model(directory, task)
        measured = measure(model, task, split.examples, arguments.batch)
        judged = judge(task, split.examples, measured.answers)
        of_models.append(measured.answers)
        about = {"model": str(directory), "kind": model.kind, "parameters": model.num_parameters}
        found = facts_of(judged, measured)
        facts["models"].append(about | found | {"notes": [*model.notes, *found["notes"]]})
        lines += ["", f"{directory}: {model.kind}, {model.num_parameters:,} parameters"]
        lines += [f"  note: {note}" for note in model.notes] + [f"  {line}" for line in lines_of(judged, measured)]
    if arguments.ensemble:
        judged = judge(task, split.examples, mean_answers(task, of_models))
        facts["ensemble"] = facts_of(judged, None)
        lines += ["", f"ensemble of {len(of_models)} models", *(f"  {line}" for line in lines_of(judged, None))]
    if arguments.predictions is not None:
        from deberta_scale.finetune.predictions import write_predictions

        arguments.predictions.mkdir(parents=True, exist_ok=True)
        path = write_predictions(task, split_name, split.examples, judged.predictions, arguments.predictions)
        facts["predictions"] = str(path)
        lines += ["", f"wrote {path}"]
    report(arguments.json, facts, lines)


def _check(directories: Sequence[Path], arguments: argparse.Namespace) -> None:
    """What can be told before anything is read."""
    if arguments.ensemble and len(directories) < 2:
        raise ValueError("--ensemble has no effect on one model; give two or more")
    if arguments.predictions is not None and len(directories) > 1 and not arguments.ensemble:
        raise ValueError(f"--predictions with {len(directories)} models: whose? Give one model, or --ensemble")


if __name__ == "__main__":
    sys.exit(main())
