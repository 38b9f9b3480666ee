"""Convert an official checkpoint: `python scripts/convert.py CHECKPOINT.pth --preset offseg-t-ade --output DIR`."""

import sys

from offseg_hf.cli import main


if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
