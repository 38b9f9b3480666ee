"""Evaluate a model as `offseg evaluate` does, in several processes: `accelerate launch scripts/evaluate_model.py`."""

import sys

from offseg_hf.cli import main


if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
