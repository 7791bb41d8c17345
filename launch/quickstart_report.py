"""What the quickstart shows at its end: did the model learn, does it load elsewhere, does it fill masks?

python launch/quickstart_report.py RUN_DIR SENTENCE...
"""

import argparse
import json
from pathlib import Path

from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from deberta_scale.convert.fill_mask import FillMask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="a finished run, exported to RUN_DIR/huggingface")
    parser.add_argument("sentences", nargs="+", help="sentences with [MASK]")
    arguments = parser.parse_args()
    exported = arguments.run_dir / "huggingface"

    records = map(json.loads, (arguments.run_dir / "log.jsonl").read_text().splitlines())
    last = [record for record in records if record["kind"] == "evaluation"][-1]
    print(
        f"\nheld-out loss {last['loss']:.4f} nats, masked accuracy {last['masked_accuracy']:.3f};"
        f" unigram entropy {last['unigram_entropy']:.4f} nats"
    )

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    encoder, tokenizer = AutoModel.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    hidden = encoder(**tokenizer(arguments.sentences[0], return_tensors="pt")).last_hidden_state
    print(f"stock transformers: {type(encoder).__name__} gives hidden states of shape {tuple(hidden.shape)}")

    fill_mask = FillMask.load(exported)
    for sentence in arguments.sentences:
        print(sentence)
        for candidates in fill_mask.top(sentence, k=5):
            print("   " + "   ".join(f"{word} {probability:.3f}" for word, probability in candidates))


if __name__ == "__main__":
    main()
