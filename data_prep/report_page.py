"""What inspect_shards.py found, as one HTML page that needs nothing else: no script, no request, light and dark."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from data_prep.masked_rows import ALTERED
from data_prep.report_plots import Content, bars, element, html_of, number, rank_frequency_curve
from data_prep.report_style import STYLE
from deberta_scale.durable import write_durably

_INPUTS_SHOWN = 20
_SCRIPTS_SHOWN = 16
_NO_REQUESTS = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever a text holds, the browser fetches and runs nothing."""
Facts = Mapping[str, Any]


def write_report(path: Path, found: Facts) -> None:
    """Write the page of what `inspect_shards.inspect` and `preparation_of` returned; an older file is replaced."""
    write_durably(path, page_of(found))


def page_of(found: Facts) -> str:
    """The page as text; `found` as inspect_shards.py prints it with --json."""
    splits: Mapping[str, Facts] = found["splits"]
    sections = [
        _section("Counts", _counts(splits)),
        _section("Tokenizer", [_definitions(found["tokenizer"])]),
        _section("Preparation", _preparation(found["preparation"])),
        _section("Length of documents", _each(splits, _lengths)),
        _section("Scripts", _each(splits, _scripts), "Of letters, by their Unicode names. A script is no language."),
        _section("Frequency of pieces", _each(splits, _frequencies)),
        _section("Rows as the model sees them", [_legend(), *_each(splits, _rows)]),
        _section("Beginnings of documents", _each(splits, _documents), "¶ is the end of a paragraph."),
    ]
    title = f"Shards in {found['directory']}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_NO_REQUESTS),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE),
    )
    return html_of(element("html", head, element("body", element("h1", title), *sections), lang="en"))


def _section(title: str, content: Iterable[Content], note: str = "") -> Element:
    notes = [element("p", note, class_="soft")] if note else []
    return element("section", element("h2", title), *notes, *content)


def _each(splits: Mapping[str, Facts], shown: Callable[[Facts, str], list[Element]]) -> list[Element]:
    return [part for split, facts in splits.items() for part in (element("h3", split), *shown(facts, split))]


def _table(header: Sequence[str], rows: Iterable[Sequence[Content]]) -> Element:
    """First the name of a row, then numbers or text."""

    def cell(content: Content) -> Element:
        is_number = isinstance(content, Element) and content.tag == "data"
        return element("td", content, **({"class_": "number"} if is_number else {}))

    body = [element("tr", element("th", name, scope="row"), *map(cell, cells)) for name, *cells in rows]
    top = [
        element("th", name, scope="col", **({"class_": "number"} if place else {})) for place, name in enumerate(header)
    ]
    table = element("table", element("thead", element("tr", *top)), element("tbody", *body))
    return element("div", table, class_="scroll")


def _counts(splits: Mapping[str, Facts]) -> list[Content]:
    def row(name: str, value: Callable[[Facts], int | float], form: str = ",") -> list[Content]:
        return [name, *(number(value(facts), format(value(facts), form)) for facts in splits.values())]

    rows = [
        row("documents", lambda facts: facts["documents"]),
        row("paragraphs", lambda facts: facts["sequences"]),
        row("tokens", lambda facts: facts["tokens"]),
        row("shards", lambda facts: facts["shards"]),
        row("unknown tokens", lambda facts: facts["unknown_tokens"]),
        row("share of unknown tokens", lambda facts: facts["unknown_rate"], ".4%"),
        row("share of byte pieces, sampled", lambda facts: facts["byte_rate"], ".4%"),
        row("entropy of single pieces, nats", lambda facts: facts["unigram_entropy_nats"], ".4f"),
        row("median tokens in a document", lambda facts: facts["median_document_tokens"], ",.0f"),
        row("longest document, tokens", lambda facts: facts["longest_document_tokens"]),
    ]
    prints = {f"fingerprint of {split}": facts["fingerprint"] for split, facts in splits.items()}
    return [_table(["", *splits], rows), _definitions(prints)]


def _definitions(facts: Facts) -> Element:
    pairs = [(element("dt", name.replace("_", " ")), element("dd", _value(value))) for name, value in facts.items()]
    return element("dl", *(part for pair in pairs for part in pair))


def _value(value: Any) -> Content:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return element("code", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _preparation(preparation: Facts | None) -> list[Content]:
    """Input, options, and whatever else the file tells: a mapping of mappings of counts becomes a table."""
    if preparation is None:
        return [element("p", "No preparation.json lies beside these shards: what they were made of is not known.")]
    plan = dict(preparation.get("plan") or {})
    inputs = plan.pop("input", [])
    plain = plan | {name: value for name, value in preparation.items() if name != "plan" and not _is_counts(value)}
    content: list[Content] = [_definitions(plain)]
    for name, counts in preparation.items():
        if name != "plan" and _is_counts(counts):
            columns = list(dict.fromkeys(column for entry in counts.values() for column in entry))
            rows = [[key, *(_value(entry.get(column, "–")) for column in columns)] for key, entry in counts.items()]
            title = f"Left out by {name.replace('_', ' ')}"
            content += [element("h3", title), _table(["", *columns], rows)]
    rows = [[str(entry.get("name")), _value(entry.get("bytes", 0))] for entry in inputs[:_INPUTS_SHOWN]]
    content += [element("h3", "Input"), _table(["file", "bytes"], rows)]
    if len(inputs) > _INPUTS_SHOWN:
        content.append(element("p", f"and {len(inputs) - _INPUTS_SHOWN:,} more", class_="soft"))
    return content


def _is_counts(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(entry, Mapping) for entry in value.values())


def _figure(caption: str, plot: Element) -> Element:
    return element("figure", element("figcaption", caption), plot)


def _lengths(facts: Facts, split: str) -> list[Element]:
    entries = [
        (f"{bucket['shortest']:,} – {bucket['longest']:,}", bucket["documents"], f"{bucket['documents']:,}")
        for bucket in facts["histogram"]
    ]
    return [_figure("documents by tokens, all of them", bars(f"Length of documents, {split}", entries))]


def _sampled(facts: Facts) -> str:
    sample = facts["sample"]
    if sample["is_whole_split"]:
        return f"all {sample['tokens']:,} tokens"
    return (
        f"a sample of {sample['tokens']:,} tokens: at most {sample['tokens_per_document_at_most']:,} from the middle of"
        f" each of {sample['documents']:,} documents, spread over the split"
    )


def _scripts(facts: Facts, split: str) -> list[Element]:
    scripts = facts["scripts"]
    if not scripts:
        return [element("p", f"No letters in {_sampled(facts)}.")]
    entries = [
        (entry["script"], entry["letters"], f"{entry['share']:.3%}, {entry['documents']:,}")
        for entry in scripts[:_SCRIPTS_SHOWN]
    ]
    caption = f"share of the letters, and in how many documents most are of the script; {_sampled(facts)}"
    if len(scripts) > _SCRIPTS_SHOWN:
        caption += f"; {len(scripts) - _SCRIPTS_SHOWN} rarer scripts are left out"
    return [_figure(caption, bars(f"Scripts, {split}", entries))]


def _frequencies(facts: Facts, split: str) -> list[Element]:
    caption = (
        f"{facts['distinct_pieces']:,} different pieces in {_sampled(facts)}; dashed, what Zipf's law expects after"
        " the first"
    )
    plot = rank_frequency_curve(f"Frequency of pieces by rank, {split}", facts["rank_frequency"])
    frequent = [
        element("li", element("bdi", entry["piece"]), " ", element("small", f"{entry['share']:.2%}"))
        for entry in facts["frequent_pieces"]
    ]
    return [_figure(caption, plot), element("p", "Most frequent:"), element("ul", *frequent, class_="pieces")]


def _legend() -> Element:
    marks = [
        element("li", element("bdi", "piece→other" if name == "random" else "piece", class_=name), f" {meaning}")
        for name, meaning in ALTERED.items()
    ]
    return element("div", element("p", "Predicted pieces, and what stands in their place:"), element("ul", *marks))


def _rows(facts: Facts, split: str) -> list[Element]:
    masked = facts["rows"]
    summary = (
        f"{masked['rows']:,} rows of {masked['row_length']:,} places, {masked['padding_share']:.2%} padding (packing"
        f" {masked['packing']}). Packed and masked by {masked['told_by']}; seed {masked['seed']}, epoch"
        f" {masked['epoch']}."
    )
    return [element("p", summary), *(_row(example) for example in masked["examples"])]


def _row(example: Facts) -> Element:
    pieces: list[Element] = [element("bdi", piece) for piece in example["pieces"]]
    for predicted in example["predicted"]:
        place, done = predicted["place"], predicted["shown_as"]
        text = predicted["piece"] + (f"→{example['pieces'][place]}" if done == "random" else "")
        pieces[place] = element("bdi", text, class_=done, title=f"place {place}, predicted, shown as {ALTERED[done]}")
    spaced = [part for piece in pieces for part in (piece, " ")]
    title = f"row {example['row']:,}: {len(example['predicted'])} predicted, {example['padding']} padding"
    return element("div", element("small", title), element("p", *spaced, class_="pieces"), class_="sample")


def _documents(facts: Facts, split: str) -> list[Element]:
    shown = []
    for example in facts["examples"]:
        pieces: list[Content] = []
        for paragraph in example["pieces"]:
            pieces += [part for piece in paragraph for part in (element("bdi", piece), " ")] + ["¶ "]
        if example["tokens"] > sum(map(len, example["pieces"])):
            pieces[-1] = "…"
        title = f"document {example['document']:,}: {example['tokens']:,} tokens, {example['sequences']:,} paragraphs"
        texts = [element("p", text, dir="auto") for text in example["text"]]
        sample = [element("small", title), *texts, element("p", *pieces, class_="pieces soft")]
        shown.append(element("div", *sample, class_="sample"))
    return shown
