"""Turn a run into a directory for others: `convert.py SOURCE DEST --to huggingface`.

SOURCE is a run directory, of which the newest complete checkpoint with good digests is taken, or one checkpoint
(RUN_DIR/checkpoints/step-NNNNNNNN). Any ZeRO stage, precision and number of ranks; the weights are exported in fp32.
"""

import argparse
import sys
from pathlib import Path

from data_prep.command import report, run
from deberta_scale.config import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run directory or one of its checkpoints")
    parser.add_argument("destination", type=Path, help="directory to write; must not exist or be empty")
    parser.add_argument("--to", choices=["huggingface"], required=True, help="form of the result")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    return run(lambda: convert(arguments.source, arguments.destination, arguments.json))


def convert(source: Path, destination: Path, as_json: bool) -> None:
    is_run = (source / "checkpoints").is_dir()
    if not is_run and not (source / "manifest.json").is_file():
        raise ValueError(f"{source} is no run directory (no checkpoints/ in it) and no checkpoint (no manifest.json)")
    run_dir = source if is_run else source.resolve().parent.parent
    config = load(run_dir / "config.yaml")

    from deberta_scale.convert.consolidate import open_checkpoint, open_newest  # late: torch takes seconds to load
    from deberta_scale.convert.huggingface import check_exportable, export

    check_exportable(config.model, run_dir / "tokenizer", destination)
    passed_over: list[str] = []

    def note(message: str) -> None:
        passed_over.append(message)
        print(message, file=sys.stderr, flush=True)

    weights = open_newest(source, note) if is_run else open_checkpoint(source)
    parameters = weights.num_parameters
    if not as_json:
        which = "the newest complete checkpoint; " if is_run else ""
        print(f"exporting {weights.checkpoint} ({which}all digests agree)", flush=True)
    export(weights, config.model, run_dir / "tokenizer", destination)
    facts = {
        "checkpoint": str(weights.checkpoint),
        "step": weights.step,
        "passed_over": passed_over,
        "parameters": parameters,
        "out": str(destination),
    }
    lines = [
        f"wrote {destination}: {parameters:,} parameters of step {weights.step} in fp32, config, tokenizer;"
        " AutoModel and AutoTokenizer load it",
        f'next: python -m deberta_scale.convert.fill_mask {destination} "The [MASK] was very kind."',
    ]
    report(as_json, facts, lines)


if __name__ == "__main__":
    sys.exit(main())
