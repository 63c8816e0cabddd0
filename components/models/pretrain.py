"""Make the embedded base from simulated pages:

    python -m components.models.pretrain --out components/models/bases/ecg-tiny --validation /path/to/ptb-xl

The one upward import of this floor: the command lives where bases live, its steps in `components.training`.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
from pathlib import Path

from components.models.bases import SHIPPED
from components.training.pretraining import PretrainParams, pretrain


def main() -> None:
    """Every field of `PretrainParams` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED / "ecg-tiny")
    parser.add_argument("--validation", type=Path, help="PTB-XL folder; its fold 9 chooses the checkpoint")
    for field in dataclasses.fields(PretrainParams):
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = vars(parser.parse_args())
    out, validation = options.pop("out"), options.pop("validation")
    pretrain(PretrainParams(**options), out, validation, _revision())


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
