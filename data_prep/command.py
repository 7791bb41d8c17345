"""What the command line tools share: one way to fail, one to report, and the types of their arguments."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any


def run(work: Callable[[], None]) -> int:
    """Do the work; what a user can put right ends as one line on standard error. Returns the exit code."""
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def report(as_json: bool, facts: dict[str, Any], lines: list[str]) -> None:
    """Say what was done: `facts` as one JSON object for machines, or `lines` for people."""
    print(json.dumps(facts) if as_json else "\n".join(lines))


def positive_int(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def open_fraction(text: str) -> float:
    """An argparse type: a number strictly between 0 and 1."""
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
