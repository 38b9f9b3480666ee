"""Train by a recipe: `accelerate launch scripts/train.py offseg-t-ade [key=value ...]`."""

import sys

from offseg_hf.cli import main


if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
