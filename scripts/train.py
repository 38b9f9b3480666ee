"""Train by a recipe: `accelerate launch scripts/train.py --config configs/offseg-t-ade.yaml [key=value ...]`."""

import sys

from offseg_hf.cli import app


if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="offseg")
