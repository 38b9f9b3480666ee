"""The `offseg` command's way in: where this module is, `import offseg_hf` imports neither torch nor transformers.

It stands beside the package because Python imports a package before what is in it.
"""


def main() -> None:
    """Run what the command line asks for."""
    from offseg_hf.cli import main

    main()
