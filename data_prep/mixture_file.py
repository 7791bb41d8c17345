"""OUT/mixture.yaml: the sources of a data description as training reads them, so that nobody types weights twice."""

from pathlib import Path

import yaml

from data_prep.sources import DataDescription
from deberta_scale.durable import write_durably

MIXTURE_FILE = "mixture.yaml"
MAX_EPOCHS = 40
"""As often as BERT read its text (Devlin et al. 2019, appendix A.2)."""


def mixture_of(description: DataDescription, out: Path) -> str:
    """YAML of the section `data.mixture` of a training config, for the shards that tokenize_corpus.py writes into
    OUT/NAME. Sources of weight 0 are left out, and named in a comment."""
    weighted = {name: source.weight for name, source in description.sources.items() if source.weight}
    left_out = [name for name in description.sources if name not in weighted]
    lines = [
        "# Written by data_prep/tokenize_corpus.py --data each time it is run; copy it to change it.",
        "# Training reads it with data.mixture=FILE, and data.shards=null where the config names shards of its own.",
        "# max_epochs: a run that would read a source more often does not start; BERT read its text 40 times.",
        *([f"# Left out, for their weight is 0: {', '.join(left_out)}"] if left_out else []),
    ]
    sources = {
        name: {"shards": str(out / name), "weight": weight, "max_epochs": MAX_EPOCHS}
        for name, weight in weighted.items()
    }
    content = yaml.safe_dump({"sources": sources}, sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join(lines) + "\n" + content


def write_mixture(description: DataDescription, out: Path) -> Path:
    """Write OUT/mixture.yaml, and leave it as it is when it says just this already. Returns its path."""
    path, text = out / MIXTURE_FILE, mixture_of(description, out)
    if not (path.exists() and path.read_text(encoding="utf-8") == text):
        write_durably(path, text)
    return path
