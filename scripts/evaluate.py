"""Evaluate a model: `accelerate launch scripts/evaluate.py --model ID --dataset SOURCE`, as `offseg evaluate` does."""

import sys

from offseg_hf.cli import app


if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]], prog_name="offseg")
