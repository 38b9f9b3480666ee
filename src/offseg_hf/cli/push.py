"""`offseg push`: your model to the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offseg_hf.cli.console import quiet_libraries, stderr, stdout


if TYPE_CHECKING:
    from offseg_hf.hub.push import Upload

Private = Annotated[bool, typer.Option("--private", help="Create private repositories.")]
OverwriteChanged = Annotated[
    bool, typer.Option("--overwrite", help="Replace what others have changed in a repository; otherwise it is kept.")
]


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a model, as runs/NAME/best.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub, as user/name.")],
    private: Private = False,
    overwrite: OverwriteChanged = False,
    space: Annotated[
        bool, typer.Option("--space", help="Upload a Gradio Space of the same name, too: a page that shows the model.")
    ] = False,
) -> None:
    """Upload your model: weights, configuration, image processor, code, and a card made from its training.

    Adapters of a training with --lora are merged in the weights, and go up by themselves too, in adapter/. What the
    Hub has already is not sent again.

    Examples:
        offseg push runs/mine/best my-name/my-model
        offseg push runs/mine/best my-name/my-model --private
        offseg push runs/mine/best my-name/my-model --overwrite
        offseg push runs/mine/best my-name/my-model --space
    """
    from offseg_hf.hub.push import push_model, push_space

    quiet_libraries()
    upload = push_model(folder, repository, private=private, overwrite=overwrite)
    _report(upload)
    if space:
        _report(push_space(folder, upload.repository, private=private, overwrite=overwrite))


def _report(upload: "Upload") -> None:
    """Print what went up, and what did not."""
    for path in upload.changes.kept:
        stderr.print(
            f"kept: {path}: changed by someone on the Hub since the last push (--overwrite replaces it)",
            style="yellow",
        )
    changes = upload.changes
    done = f"{len(changes.add)} files, {changes.size / 1e6:.1f} MB" if not changes.is_empty else "all was there"
    stdout.print(f"{upload.url}: {done}")
