"""Evaluate a model as `offseg evaluate` does, in several processes: `accelerate launch scripts/evaluate_model.py`."""

import sys

from offseg_hf.cli import app


if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]], prog_name="offseg")
