"""`offseg publish`: official checkpoints to the Hub."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from offseg_hf.cli.console import quiet_libraries, stderr, stdout
from offseg_hf.cli.push import OverwriteChanged, Private


def publish(
    folder: Annotated[Path, typer.Argument(help="Folder of official checkpoints, searched with its subfolders.")],
    org: Annotated[str, typer.Option(help="Organization on the Hub, or a user: models become ORG/PRESET.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Convert, verify and list what would be uploaded; change nothing.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Publish these presets only, for example 'offseg-*'.")
    ] = None,
    private: Private = False,
    overwrite: OverwriteChanged = False,
) -> None:
    """Publish official checkpoints: recognize, convert, verify, upload with code and card, tag the version.

    The keys and shapes in a file tell its preset, not its name; what is not clear is listed and skipped. What the Hub
    has already is not sent again: after an interruption, run the same command to continue. The exit code is 1 if
    anything failed or was skipped.

    Examples:
        offseg publish checkpoints/ --org hvision --dry-run
        offseg publish checkpoints/ --org hvision --only "offseg-*"
        offseg publish checkpoints/ --org my-name --private
    """
    from huggingface_hub import HfApi

    from offseg_hf.hub.publish import publish as publish_checkpoints
    from offseg_hf.hub.publish import recognize
    from offseg_hf.hub.repository import require_writer

    quiet_libraries()
    api = HfApi()
    require_writer(api, org)  # an error before anything is read

    def show(done: int, total: int) -> None:
        if stderr.is_terminal:
            stderr.print(f"{done} of {total} files read", end="\n" if done == total else "\r")

    found, others = recognize(folder, show)
    if only is not None:
        chosen = {name: path for name, path in found.items() if fnmatch(name, only)}
        others = [other for other in others if any(fnmatch(name, only) for name in other.presets)]
        if not (chosen or others):
            there = ", ".join(sorted(found)) or "no preset"
            raise ValueError(f"{folder}: expected checkpoints of {only!r}, got some of {there}")
        found = chosen
    for other in others:
        stderr.print(f"error: {other.source}: {other.reason}", style="red")
    publications = []
    try:
        for publication in publish_checkpoints(
            api, found, org, dry_run=dry_run, private=private, overwrite=overwrite, say=stderr.print
        ):
            publications.append(publication)
            if publication.status == "failed":
                stderr.print(f"error: {publication.preset}: {publication.detail}", style="red")
    finally:  # interrupted, too
        if publications:
            _print_summary(publications)
    if others or any(publication.status == "failed" for publication in publications):
        raise typer.Exit(1)


def _print_summary(publications: list) -> None:
    """Print a table on a terminal, elsewhere a line for each."""
    rows = [(publication.repository, publication.status, publication.detail) for publication in publications]
    if not stdout.is_terminal:
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        for repository, status, detail in rows:
            stdout.print(f"{repository:{widths[0]}}  {status:{widths[1]}}  {detail}")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("repository", "status", "detail"):
        table.add_column(title, no_wrap=title != "detail")
    for row in rows:
        table.add_row(*row)
    stdout.print(table)
