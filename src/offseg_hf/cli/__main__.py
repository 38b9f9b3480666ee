"""`python -m offseg_hf.cli`, as launchers of several processes start the command."""

from offseg_hf.cli import main


main()
