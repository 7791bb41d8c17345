"""Measure a part of this project beside what it replaces: `python launch/bench.py PART [options]`.

Every number is measured in the run that prints it: the sides take turns, each with its best setting, and medians are
reported. `--json` prints one JSON object instead. Exit codes: 0, or 1 for something that cannot be measured
here, said in one message.
"""

import argparse
import importlib
import json
import sys
from typing import Any, Protocol

PARTS = {
    "attention": "bench_attention",
    "head": "bench_head",
    "loader": "bench_loader",
    "prepare": "bench_prepare",
    "step": "bench_step",
}
"""Each part is a module beside this file, imported only when it is asked for."""


class Part(Protocol):
    """What such a module has."""

    SUMMARY: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Beside --json, which all parts have."""

    def measure(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Everything measured, and what it was measured on. Raises ValueError when that cannot be done."""

    def as_text(self, result: dict[str, Any]) -> str:
        """For people."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS), help="what to measure; `PART --help` says more of one")
    chosen, rest = parser.parse_known_args(sys.argv[1:2])
    part: Part = importlib.import_module(PARTS[chosen.part])  # type: ignore[assignment]
    options = argparse.ArgumentParser(prog=f"{parser.prog} {chosen.part}", description=part.SUMMARY)
    options.add_argument("--json", action="store_true", help="print one JSON object instead")
    part.add_options(options)
    arguments = options.parse_args(rest + sys.argv[2:])
    try:
        result = part.measure(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if arguments.json else part.as_text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
