"""Turn a model into another form: `convert.py SOURCE DEST --to {huggingface,official,deberta-scale}`.

SOURCE is recognised by its files: a run directory, of which the newest complete checkpoint with good digests is taken;
one checkpoint (RUN_DIR/checkpoints/step-NNNNNNNN) of any ZeRO stage, precision and number of ranks; a deberta-scale
directory; a Hugging Face directory of a DeBERTa V1, V2 or V3; a directory or file of the official code. The weights are
written in fp32.
"""

import argparse
import sys
from pathlib import Path

from data_prep.command import report, run
from deberta_scale.durable import refuse_used

FORMS = ("huggingface", "official", "deberta-scale")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run, a checkpoint, or a model's directory or file")
    parser.add_argument("destination", type=Path, help="directory to write; must not exist or be empty")
    parser.add_argument("--to", choices=FORMS, required=True, help="form of the result")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    return run(lambda: convert(arguments.source, arguments.destination, arguments.to, arguments.json))


def convert(path: Path, destination: Path, form: str, as_json: bool) -> None:
    refuse_used(destination)

    from deberta_scale.convert import huggingface, native, official  # late: torch takes seconds to load
    from deberta_scale.convert.formats import open_source

    passed_over: list[str] = []

    def note(message: str) -> None:
        passed_over.append(message)
        print(message, file=sys.stderr, flush=True)

    source = open_source(path, note)
    parameters = source.weights.num_parameters
    if not as_json:
        is_checkpoint = source.kind == "checkpoint"
        which = "the newest complete checkpoint; " if is_checkpoint and source.path != path else ""
        digests = f" ({which}all digests agree)" if is_checkpoint else ""
        print(f"reading {source.path}{digests}: {source.kind}, {parameters:,} parameters", flush=True)
        print("".join(f"note: {line}\n" for line in source.notes), end="", flush=True)
    exports = {"huggingface": huggingface.export, "official": official.export, "deberta-scale": native.export}
    notes = exports[form](source, destination)
    facts = {
        "source": str(source.path),
        "kind": source.kind,
        "step": source.facts.get("step"),
        "passed_over": passed_over,
        "notes": notes,
        "parameters": parameters,
        "form": form,
        "out": str(destination),
    }
    step = f" of step {facts['step']}" if facts["step"] is not None else ""
    written = {
        "huggingface": "config, tokenizer; AutoModel and AutoTokenizer load it",
        "official": f"{official.CONFIG_FILE}, tokenizer; the official MaskedLanguageModel loads it",
        "deberta-scale": f"{native.SHAPE_FILE}, tokenizer; init_from of a run reads it",
    }
    lines = [
        *(f"note: {line}" for line in notes if line not in source.notes),
        f"wrote {destination}: {parameters:,} parameters{step} in fp32, {written[form]}",
        f"next: {next_command(form, destination)}",
    ]
    report(as_json, facts, lines)


def next_command(form: str, destination: Path) -> str:
    """What the result is for."""
    if form == "huggingface":
        return f'python -m deberta_scale.convert.fill_mask {destination} "The [MASK] was very kind."'
    if form == "official":
        return f"python -m DeBERTa.apps.run --init_model {destination}/pytorch_model.bin ... in the official repository"
    return f"python data_prep/tokenize_corpus.py --input ... --tokenizer {destination}/tokenizer --out SHARDS"


if __name__ == "__main__":
    sys.exit(main())
