"""The model card (README.md) of a fine-tuned model: what it answers, how to ask it, what was measured."""

from typing import Any

from deberta_scale.convert.finetuned_source import FineTuned
from deberta_scale.convert.model_card import LICENCE, TAGS, differences, joined, size_in_words, text_points

_PIPELINES = {
    "classification": "text-classification",
    "regression": "text-classification",
    "choice": "multiple-choice",
    "tokens": "token-classification",
    "span": "question-answering",
}
_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "choice": "AutoModelForMultipleChoice",
    "tokens": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
}
_ANSWERS = {
    "classification": "one label for each text or pair",
    "regression": "a number for each text or pair",
    "choice": "a score for each choice",
    "tokens": "a label for each word, at its first token",
    "span": "where an answer begins and ends in its context",
}


def finetuned_card(model: FineTuned, title: str, tokenizer_kind: str, notes: tuple[str, ...]) -> str:
    """Markdown with a YAML head as model hubs read it. The same arguments give the same card."""
    description = model.description
    kind = "BERT-like baseline" if model.config.baseline else "DeBERTa"
    labels = ", ".join(f"`{name}`" for name in description.labels if description.head != "choice")
    parts = [
        f"# {title}",
        f"A {kind} fine-tuned for the task `{description.task}`: {_ANSWERS[description.head]}.\n"
        f"{size_in_words(model.config, model.weights)}.\n"
        f"Rows had at most {description.max_length} tokens in fine-tuning. Written by deberta-scale.",
        f"Labels, in the order of the outputs: {labels}." if labels else "",
        "\n".join(f"- Note: {note}." for note in notes),
        _usage(description.head),
        _results(model),
        differences(text_points(model.config, tokenizer_kind)),
        LICENCE,
    ]
    return joined(_front_matter(description.head), parts)


def _front_matter(head: str) -> dict[str, Any]:
    return {"library_name": "transformers", "license": "unknown", "pipeline_tag": _PIPELINES[head], "tags": TAGS}


def _usage(head: str) -> str:
    name = _CLASSES[head]
    trust = ", trust_remote_code=True" if head == "tokens" else ""
    code = "\n".join(
        [
            f"from transformers import {name}, AutoTokenizer",
            "",
            'directory = "."  # where this file lies, or the name of its repository',
            "tokenizer = AutoTokenizer.from_pretrained(directory)",
            f"model = {name}.from_pretrained(directory{trust})",
        ]
    )
    return f"## Use\n\n```python\n{code}\n```"


def _results(model: FineTuned) -> str:
    if not model.results:
        return ""
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in model.results.items())
    return f"## Results\n\n| | |\n|---|---|\n{rows}"
