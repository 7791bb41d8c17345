"""Check that shards are what was written: `verify_shards.py DIR`.

Opens both splits, digests every shard again, and checks that the tokenizer beside them is theirs. Exits with 1 and
names each file that changed.
"""

import argparse
import sys
from pathlib import Path

from data_prep.command import report, run
from data_prep.workplace import SPLITS
from deberta_scale.data.shards import ShardError, ShardSet
from deberta_scale.data.tokenizer import Tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory written by tokenize_corpus.py")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    def work() -> None:
        if not arguments.json:
            print(f"digesting every file of {arguments.directory} again", flush=True)
        opened = {split: ShardSet(arguments.directory / split) for split in SPLITS}
        tokenizer = Tokenizer.load(arguments.directory / "tokenizer")
        verified: dict[str, list[str]] = {}
        problems: list[str] = []
        for split, shards in opened.items():
            try:
                shards.check_tokenizer(tokenizer.describe(), arguments.directory / "tokenizer")
            except ShardError as error:
                problems.append(str(error))
            verified[split] = []
            for number in range(shards.num_shards):
                try:
                    verified[split].append(shards.verify_shard(number))
                except ShardError as error:
                    problems.append(str(error))
        lines = [f"{split}/{name}: ok" for split, names in verified.items() for name in names]
        if not problems:
            lines.append(f"next: python launch/plan.py configs/pretrain/tiny.yaml data.shards={arguments.directory}")
        report(arguments.json, {"verified": verified, "problems": problems}, lines)
        if problems:
            raise ShardError("\n".join(problems))

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
