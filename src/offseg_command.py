"""The `offseg` command's way in: where this module is, `import offseg_hf` imports neither torch nor transformers.

It stands beside the package because Python imports a package before what is in it.
"""

import os


# How often a thread of a product looks for more work before it sleeps (GNU OpenMP). By default it looks for
# milliseconds, in which threads that read and write photos could have its processor; so few leave a network that is
# alone as fast.
SPINS = "20000"


def main() -> None:
    """Run what the command line asks for."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # before torch is imported, which reads it once
    from offseg_hf.cli import main

    main()
