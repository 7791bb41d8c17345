"""The model card (README.md) of an exported directory. Its numbers come from files of the run and from nowhere else:
what no file tells is not in the card."""

import json
from pathlib import Path
from typing import Any

import yaml

from deberta_scale.config import Config, ModelConfig
from deberta_scale.config_file import load
from deberta_scale.convert.source import Source, Weights
from deberta_scale.data.tokenizer import MASK_PIECE

CARD_FILE = "README.md"


def model_card(source: Source, tokenizer_kind: str | None, notes: tuple[str, ...] = ()) -> str:
    """Markdown with a YAML head as model hubs read it. The same arguments give the same card.

    `tokenizer_kind` is that of the exported tokenizer (`Tokenizer.kind`), None when there is none; `notes` are printed
    as they are. Raises ConfigError when the source is of a run and its config.yaml cannot be read.
    """
    parts = [
        f"# {_title(source)}",
        _description(source),
        "\n".join(f"- Note: {note.rstrip('.')}." for note in notes),
        _usage(source, tokenizer_kind),
        _training(source),
        differences([*_mask_points(source), *text_points(source.config, tokenizer_kind)]),
        LICENCE,
    ]
    return joined(_front_matter(source), parts)


def joined(front_matter: dict[str, Any], parts: list[str]) -> str:
    """The YAML head and the parts of a card that are not empty, as one text."""
    head = "---\n" + yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True) + "---"
    return "\n\n".join(part for part in (head, *parts) if part) + "\n"


_SPACE_SIGNS = {"sentencepiece": "▁", "byte_pair": "Ġ"}
TAGS = ["deberta", "deberta-v2", "deberta-scale"]
LICENCE = """## Licence

Not stated yet (`license: unknown` at the top of this file). Whoever publishes the weights names their licence there;
the identifiers are listed at <https://huggingface.co/docs/hub/repositories-licenses>. Code that lies in this directory
is under Apache-2.0."""


def _front_matter(source: Source) -> dict[str, Any]:
    head: dict[str, Any] = {"library_name": "transformers", "license": "unknown"}
    if source.missing():
        head["pipeline_tag"] = "feature-extraction"
    else:
        head |= {"pipeline_tag": "fill-mask", "mask_token": MASK_PIECE}
    return head | {"tags": TAGS}


def _title(source: Source) -> str:
    run_dir = source.facts.get("run_dir")
    return source.path.resolve().name if run_dir is None else f"{Path(run_dir).resolve().name}, step {_step(source)}"


def _description(source: Source) -> str:
    model = source.config
    kind = "A BERT-like baseline to compare DeBERTa with" if model.baseline else "A DeBERTa"
    decoder = "" if model.baseline or source.missing() else ", with its enhanced mask decoder"
    return (
        f"{kind}{decoder}: {size_in_words(model, source.weights)}.\n"
        f"Written by deberta-scale from: {source.kind} `{source.path.resolve().name}`."
    )


def size_in_words(model: ModelConfig, weights: Weights) -> str:
    return (
        f"{model.num_hidden_layers} layers of {model.hidden_size}, {model.num_attention_heads} heads,"
        f" {model.vocab_size:,} vocabulary rows, texts of up to {model.max_position_embeddings} tokens;"
        f" {weights.num_parameters:,} parameters in fp32"
    )


def _usage(source: Source, tokenizer_kind: str | None) -> str:
    imports, lines = ["AutoModel"], []
    if tokenizer_kind is not None:
        imports.append("AutoTokenizer")
        lines.append("tokenizer = AutoTokenizer.from_pretrained(directory)")
    lines.append("encoder = AutoModel.from_pretrained(directory)")
    can_fill_masks = not source.missing() and tokenizer_kind is not None
    if can_fill_masks:
        imports.append("pipeline")
        lines.append('fill_mask = pipeline("fill-mask", model=directory, trust_remote_code=True)')
        lines.append(f'print(fill_mask("She was very {MASK_PIECE} to see him."))')
    code = "\n".join(
        [
            f"from transformers import {', '.join(imports)}",
            "",
            'directory = "."  # where this file lies, or the name of its repository',
            *lines,
        ]
    )
    text = [f"## Use\n\n```python\n{code}\n```"]
    text.append(
        "Encoder and fine-tuning classes (`AutoModelForSequenceClassification` and so on) are stock ones and run no"
        " code from this directory."
    )
    if can_fill_masks:
        space = _SPACE_SIGNS.get(str(tokenizer_kind), "")
        text.append(
            "Filling masks runs `modeling_deberta_scale.py` from this directory, hence `trust_remote_code`. Without"
            " `transformers`, the package does the same:\n\n```\npython -m deberta_scale.convert.fill_mask DIRECTORY"
            f' "She was very {MASK_PIECE} to see him."\n```\n\n`targets` of the pipeline are pieces, and a piece that'
            ' starts a word has a space sign: `targets=["' + space + 'kind", "' + space + 'glad"]`.'
        )
    return "\n\n".join(text)


def _mask_points(source: Source) -> list[str]:
    if source.config.baseline or source.missing():
        return []
    return [
        "**Stock masked language modelling is not this model.** `AutoModelForMaskedLM` without `trust_remote_code`"
        " is the stock class: it leaves out the mask decoder (absolute positions added to the queries, the last"
        " layer run twice), so its answers are not those the model was trained to give."
    ]


def text_points(model: ModelConfig, tokenizer_kind: str | None) -> list[str]:
    """How texts are cut and read otherwise than elsewhere, whatever stands on the encoder."""
    points = []
    if model.relative_attention and model.position_buckets:
        furthest = model.max_relative_positions
        points.append(
            f"**Texts of more than {furthest} tokens.** The official code clamps distances to ±{furthest - 1}; stock"
            f" `transformers` does not, and a distance of {furthest} or more to a token further on reads a row of the"
            " relative table that was never trained. Code of deberta-scale clamps."
        )
    points.append(
        "**Padding.** What comes out at padding means nothing, and is not what the official code gives there."
    )
    if tokenizer_kind is not None:
        points.append(
            f"**Tokenizer.** Text beside {MASK_PIECE} is cut as if a word stood there: a full stop after it gets no"
            " space sign, where released DeBERTa tokenizers put one. `[PAD]`, `[CLS]`, `[SEP]` and `[UNK]` written in a"
            " text are those tokens."
        )
    if tokenizer_kind == "sentencepiece":
        points.append(
            "**Sentencepiece.** `tokenizer.json` cuts texts as sentencepiece does with `spm.model`, except: where two"
            " cuts have exactly the same score; in texts of many thousand tokens without a line break, where"
            " sentencepiece's single-precision sums run out of digits; and combining marks that are stacked out of"
            " canonical order are put in order. With another model of 32,000 pieces, on 2,000 English documents, 16 of"
            " 78,731 paragraphs differed (16 equal scores), and 9 documents when each was cut as one text (8 for"
            " digits, 1 equal score); `launch/compare_tokenizers.py` counts them for this one."
        )
    return points


def differences(points: list[str]) -> str:
    return "## What differs from elsewhere\n\n" + "\n".join(f"- {point}" for point in points)


def _step(source: Source) -> int:
    return int(source.facts["step"])


def _training(source: Source) -> str:
    """What the run's files tell, as a table; nothing for a source that is not of a run."""
    if source.facts.get("run_dir") is None:
        return ""
    run_dir, step = Path(source.facts["run_dir"]), _step(source)
    config, last = load(run_dir / "config.yaml"), _last_records(run_dir / "log.jsonl", step)
    rows = [*_state_rows(source.path / "state.json"), *_config_rows(config, step)]
    rows += [*_data_rows(config, step, last.get("train", {})), *_left_out_rows(run_dir / "data.json")]
    rows += [*_result_rows(last), *_environment_rows(run_dir / "environment.json")]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Training\n\n| | |\n|---|---|\n{table}"


def _state_rows(path: Path) -> list[tuple[str, str]]:
    fingerprint = _json_object(path).get("data_fingerprint")
    return [("data fingerprint", f"`{fingerprint}`")] if fingerprint else []


def _config_rows(config: Config, step: int) -> list[tuple[str, str]]:
    data, masking, optimizer, schedule = config.data, config.data.masking, config.optimizer, config.schedule
    decay = f", decay over the last {schedule.decay_steps:,} steps" if schedule.decay_steps else ""
    rows = [
        ("steps", f"{step:,} of {config.train.steps:,}"),
        ("batch", f"{config.batch.sequences:,} sequences of {data.sequence_length}, packed {data.packing}"),
        ("token places read", f"{step * config.tokens_per_step:,}"),
        (
            "masking",
            f"{masking.probability:g} of the tokens, in spans of up to {masking.max_span_words} whole words;"
            f" {masking.mask_fraction:g} shown as {MASK_PIECE}, {masking.random_fraction:g} as another piece"
            + ("; chosen as the released code does, with its bias" if masking.compat == "official" else ""),
        ),
        (
            "optimizer",
            f"AdamW, learning rate {optimizer.learning_rate:g}, betas {optimizer.betas[0]:g} and"
            f" {optimizer.betas[1]:g}, eps {optimizer.eps:g}, weight decay {optimizer.weight_decay:g}, gradients"
            f" clipped at {optimizer.max_grad_norm:g}",
        ),
        (
            "schedule",
            f"{schedule.name}, {schedule.warmup_steps:,} steps of warm-up{decay}, down to"
            f" {schedule.final_fraction:g} of the rate",
        ),
        ("precision", f"{config.engine.precision}, ZeRO stage {config.engine.zero_stage}"),
    ]
    return rows


def _data_rows(config: Config, step: int, train: dict[str, Any]) -> list[tuple[str, str]]:
    """How often the text was read, as the last training record says; of a mixture, also the weights of each source."""
    mixture = config.data.mixture
    if mixture is None:
        return [(f"epochs at step {train['step']:,}", f"{train['epochs']:.2f}")] if "epochs" in train else []
    rows, shares = [], mixture.share_of_run(step)
    for name in mixture.sources:
        (_, first), *later = [(begin, weights[name]) for begin, weights in mixture.weights_by_step() if begin < step]
        said = f"weight {first:g}" + "".join(f", from step {begin:,} {weight:g}" for begin, weight in later)
        epochs = train.get(f"epochs/{name}")
        read = "" if epochs is None else f"; read {epochs:.2f} times by step {train['step']:,}"
        rows.append((f"source {name}", f"{said}; {shares[name]:.2%} of the samples{read}"))
    return rows


def _left_out_rows(path: Path) -> list[tuple[str, str]]:
    """What the preparation left out of each source, by filter."""
    rows = []
    for name, facts in _json_object(path).items():
        by_filter = facts.get("cleaning", {}) | facts.get("deduplication", {})
        dropped = [
            f"{counts[f'{unit}_dropped']:,} {unit} by {filter_name}"
            for filter_name, counts in by_filter.items()
            for unit in ("documents", "paragraphs")
            if counts.get(f"{unit}_dropped")
        ]
        if dropped:
            rows.append((f"left out of {name}" if name else "text left out", ", ".join(dropped)))
    return rows


def _last_records(path: Path, step: int) -> dict[str, dict[str, Any]]:
    """The last records of a log that are not later than the checkpoint, by kind."""
    last: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            if record["step"] <= step:
                last[record["kind"]] = record
        except (ValueError, KeyError, TypeError):
            continue  # cut by a crash
    return last


def _result_rows(last: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    if train := last.get("train"):
        rows.append((f"training loss at step {train['step']:,}", f"{train['loss']:.4f} nats a predicted token"))
    if held_out := last.get("evaluation"):
        at = f"at step {held_out['step']:,}"
        rows.append((f"held-out loss {at}", f"{held_out['loss']:.4f} nats"))
        rows.append((f"held-out masked accuracy {at}", f"{held_out['masked_accuracy']:.4f}"))
        if "unigram_entropy" in held_out:
            rows.append(("loss of guessing by frequency alone", f"{held_out['unigram_entropy']:.4f} nats"))
    return rows


def _environment_rows(path: Path) -> list[tuple[str, str]]:
    environment = _json_object(path)
    rows = []
    if versions := environment.get("versions"):
        rows.append(("versions", ", ".join(f"{package} {version}" for package, version in versions.items())))
    if ranks := environment.get("ranks"):
        gpus = ", ".join(sorted(set(environment.get("gpus", ()))))
        rows.append(("ranks", f"{ranks}" + (f", on {gpus}" if gpus else "")))
    return rows


def _json_object(path: Path) -> dict[str, Any]:
    """A file's content; empty when there is no such file or it is damaged: the weights are good without it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
