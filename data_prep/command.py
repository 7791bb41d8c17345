"""What the command line tools share: one way to fail, and one way to publish a directory whole or not at all."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def published_directory(out: Path) -> Iterator[Path]:
    """Give `OUT.partial` to write into; when the block ends well it is synced and renamed to `out`, else removed.

    Raises ValueError when `out` exists and is not an empty directory. A `.partial` that a killed run left is removed.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; give another --out, or remove it first")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        partial.rename(out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
