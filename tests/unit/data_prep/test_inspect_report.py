"""The page that inspect_shards.py writes: true to the shards, and safe whatever the text holds."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from data_prep.inputs import Reading, find_inputs
from data_prep.report_page import page_of
from data_prep.report_plots import bars, element, html_of, rank_frequency_curve
from data_prep.scripts_of_text import visible
from data_prep.tokenize_corpus import tokenize
from deberta_scale.data.shards import MANIFEST_FILE
from tests.launching import ROOT

VOID = {"meta"}
HARMLESS = {"html", "head", "meta", "title", "style", "body", "section", "h1", "h2", "h3", "p", "dl", "dt", "dd", "div"}
HARMLESS |= {"table", "thead", "tbody", "tr", "th", "td", "data", "code", "small", "figure", "figcaption", "ul", "li"}
HARMLESS |= {"bdi", "svg", "text", "rect", "line", "polyline"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</style></svg><img src=x onerror=alert(2)> &lt;b&gt;",
    '"\' onmouseover="alert(3)" x=\'',
    "שלום\u202e עולם \u2066مرحبا",
    "\x1b[31mred\x07 \x7f\x85 \ufeff",
    "]]> <!-- --> <![CDATA[ {{7*7}}",
)


class Page(HTMLParser):
    """Elements, text and attributes of a page whose elements are closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.rows: dict[str, list[float]] = {}
        """The numbers in the table rows of this name."""
        self._open: list[str] = []
        self._row_start = 0
        self._values: list[float] = []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self._row_start, self._values = len(self.text), []
        if tag == "data":
            self._values.append(float(dict(attrs)["value"] or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "th" and not self._values:
            self.name = self.text[self._row_start :]
        if tag == "tr":
            self.rows[self.name] = self._values

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def check_is_self_contained(content: str) -> Page:
    page = Page(content)
    assert page.tags == HARMLESS & page.tags, page.tags - HARMLESS
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on")] and not names & {"src", "href", "style", "xlink:href"}
    assert "url(" not in content and "@import" not in content
    for plot in re.findall(r"<svg.*?</svg>", content, re.DOTALL):
        ElementTree.fromstring(plot)
    assert visible(content) == content, "control characters"
    return page


def run_inspect(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "data_prep" / "inspect_shards.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def reported(
    prepared_shards: Path, small_config: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, str]:
    """(what --json said, the page, what a terminal showed)."""
    path = tmp_path_factory.mktemp("report") / "page.html"
    path.write_text("an older page")
    config = tmp_path_factory.mktemp("config") / "run.yaml"
    config.write_text(small_config)
    options = [prepared_shards, "--config", config]
    shown = run_inspect(*options)
    done = run_inspect(*options, "--report", path, "--json")
    assert (shown.returncode, shown.stderr, done.returncode, done.stderr) == (0, "", 0, "")
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]
    return json.loads(done.stdout), path.read_text(encoding="utf-8"), shown.stdout


def test_json_is_one_object_that_names_the_page(reported: tuple[dict[str, Any], str, str]) -> None:
    found, page, _ = reported
    assert found["report"].endswith("page.html")
    assert page_of(found) == page


def test_the_page_needs_nothing_else_and_has_every_section(reported: tuple[dict[str, Any], str, str]) -> None:
    _, content, _ = reported
    page = check_is_self_contained(content)
    assert content.startswith("<!DOCTYPE html>\n<html") and len(re.findall("<svg", content)) == 6
    headings = re.findall("<h2>(.*?)</h2>", content)
    assert headings == [
        "Counts",
        "Tokenizer",
        "Preparation",
        "Length of documents",
        "Scripts",
        "Frequency of pieces",
        "Rows as the model sees them",
        "Beginnings of documents",
    ]
    assert "prefers-color-scheme: dark" in content and ("name", "viewport") in page.attributes


def test_numbers_on_the_page_are_those_of_the_manifests(
    reported: tuple[dict[str, Any], str, str], prepared_shards: Path
) -> None:
    _, content, _ = reported
    page = Page(content)
    manifests = [json.loads((prepared_shards / split / MANIFEST_FILE).read_text()) for split in ("train", "validation")]
    for name, key in {
        "documents": "documents",
        "paragraphs": "sequences",
        "tokens": "tokens",
        "unknown tokens": "unknown_tokens",
        "entropy of single pieces, nats": "unigram_entropy_nats",
    }.items():
        assert page.rows[name] == [manifest[key] for manifest in manifests], name
    assert page.rows["share of unknown tokens"] == [m["unknown_tokens"] / m["tokens"] for m in manifests]
    for manifest in manifests:
        assert manifest["fingerprint"] in page.text and f"{manifest['tokens']:,}" in page.text
    assert manifests[0]["tokenizer_sha256"] in page.text


def test_masks_are_marked_on_the_page_and_in_the_terminal(reported: tuple[dict[str, Any], str, str]) -> None:
    found, content, shown = reported
    examples = [example for facts in found["splits"].values() for example in facts["rows"]["examples"]]
    predicted = [p for example in examples for p in example["predicted"]]
    for done, legend in (("mask", 1), ("random", 1), ("kept", 1)):
        marked = [p["piece"] for p in predicted if p["shown_as"] == done]
        assert len(re.findall(f'<bdi class="{done}"', content)) == len(marked) + legend
    assert shown.count("⟦") == len(predicted) + 3 * len(found["splits"])
    for example in examples:
        for p in example["predicted"]:
            seen = {"mask": "", "random": f"→{example['pieces'][p['place']]}", "kept": "="}[p["shown_as"]]
            assert f"⟦{p['piece']}{seen}⟧" in shown
    assert "                    Latin    100.000% ####" in shown


def test_what_every_filter_left_out_is_in_a_table(reported: tuple[dict[str, Any], str, str]) -> None:
    found, _, _ = reported
    cleaning = {
        "<b>too short</b>": {"documents": 12, "paragraphs": 0, "characters": 3456},
        "language": {"documents": 7, "characters": 1.5, "bytes": 9},
    }
    preparation = {**found["preparation"], "cleaning": cleaning, "near_duplicates": {"pairs": {"documents": 1234}}}
    page = check_is_self_contained(page_of({**found, "preparation": preparation}))
    assert page.rows["<b>too short</b>"] == [12, 0, 3456]
    assert page.rows["language"] == [7, 1.5, 9] and page.rows["pairs"] == [1234]
    assert "Left out by cleaning" in page.text and "Left out by near duplicates" in page.text and "1,234" in page.text


def test_shards_of_before_are_told_without_their_preparation(reported: tuple[dict[str, Any], str, str]) -> None:
    found, _, _ = reported
    page = check_is_self_contained(page_of({**found, "preparation": None}))
    assert "what they were made of is not known" in page.text


def test_of_many_inputs_the_first_are_named(reported: tuple[dict[str, Any], str, str]) -> None:
    found, _, _ = reported
    inputs = [{"name": f"part-{number:04d}.jsonl", "bytes": number} for number in range(1000)]
    page = check_is_self_contained(page_of({**found, "preparation": {"plan": {"input": inputs}}}))
    assert page.rows["part-0019.jsonl"] == [19] and "part-0020" not in page.text and "and 980 more" in page.text


def test_hostile_text_and_names_stay_text(prepared_shards: Path, tmp_path: Path) -> None:
    source = tmp_path / "<script>alert(4)<" / "script>\udcff.jsonl"
    source.parent.mkdir()
    lines = [json.dumps({"text": f"{text}\nparagraph {n}"}) + "\n" for n in range(40) for text in HOSTILE]
    source.write_text("".join(lines))
    tokenize(
        find_inputs([source]), Reading(), prepared_shards / "tokenizer", tmp_path / '"><b>', validation_fraction=0.2
    )
    report = tmp_path / "page.html"
    done = run_inspect(tmp_path / '"><b>', "--documents", "40", "--report", report)
    assert (done.returncode, done.stderr) == (0, "")
    shown_lines = done.stdout.replace("\n", "")
    assert visible(shown_lines) == shown_lines
    page = check_is_self_contained(report.read_text(encoding="utf-8"))
    assert "<script>alert(1)</script>" in page.text
    assert '"\' onmouseover="alert(3)" x=\'' in page.text and "שלום" in page.text
    assert f'Shards in {tmp_path}/"><b>' in page.text and "<U+DCFF>.jsonl" in page.text


@pytest.mark.parametrize("text", HOSTILE)
def test_an_element_holds_any_text_as_text(text: str) -> None:
    page = Page(html_of(element("p", text, element("bdi", text, title=text), text)))
    assert page.text.strip() == visible(text) * 3
    assert page.attributes == [("title", visible(text))]


def test_plots_hold_their_marks_inside_their_frame() -> None:
    plot = bars("<lengths>", [("a", 0, "none"), ("b", 1, "one"), ("c", 10**9, "many")])
    assert [float(bar.get("width", "")) for bar in plot.iter("rect")][:2] == [0.0, 1.0]
    for curve in ([[1, 1]], [[1, 7], [2, 1]], [[1, 999_999], [1000, 30], [128_000, 1]]):
        plot = rank_frequency_curve("frequency", curve)
        _, _, width, height = map(float, plot.get("viewBox", "").split())
        for line in plot.iter("polyline"):
            for place in line.get("points", "").split():
                x, y = map(float, place.split(","))
                assert 0 <= x <= width and 0 <= y <= height


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--report", "manifest.json", "manifest.json does not end in .html"),
        ("--report", "no/such/place/page.html", "no/such/place is no directory"),
        ("--rows", "0", "0 is not a positive number"),
    ],
)
def test_wrong_options_say_what_would_work(tmp_path: Path, option: str, value: str, expected: str) -> None:
    done = run_inspect(tmp_path, option, value)
    assert done.returncode == 2 and expected in done.stderr


def test_a_directory_is_not_replaced_by_a_page(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    done = run_inspect(tmp_path, "--report", tmp_path / "page.html")
    assert done.returncode == 2 and "is a directory" in done.stderr


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_preparation_is_named(prepared_shards: Path, tmp_path: Path, content: str) -> None:
    shards = Path(shutil.copytree(prepared_shards, tmp_path / "shards"))
    (shards / "preparation.json").write_text(content)
    done = run_inspect(shards, "--report", tmp_path / "page.html")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {shards / 'preparation.json'}: not ")
    assert not (tmp_path / "page.html").exists()


def test_looking_into_shards_loads_no_torch() -> None:
    code = "import sys, data_prep.inspect_shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False).returncode == 0
