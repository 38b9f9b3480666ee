"""Convert an official checkpoint: `python scripts/convert.py CHECKPOINT.pth --preset offseg-t-ade --output DIR`."""

import sys

from offseg_hf.cli import app


if __name__ == "__main__":
    app(["convert", *sys.argv[1:]], prog_name="offseg")
