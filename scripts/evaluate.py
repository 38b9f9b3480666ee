"""Evaluate a model: `accelerate launch scripts/evaluate.py --model ID --dataset SOURCE`, as `offseg evaluate` does."""

import sys

from offseg_hf.cli import main


if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
