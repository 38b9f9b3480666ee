"""`offseg presets`: the models of the paper."""

from rich import box
from rich.table import Table

from offseg_hf.cli.console import stdout


def presets() -> None:
    """List the presets: the paper's mIoU, sizes, costs, and how they are tested.

    A preset's name is that of its recipe, and the end of its name on the Hub.

    Examples:
        offseg presets
        offseg recipe offseg-t-ade
        offseg train offseg-t-ade data.source=my_photos
    """
    from offseg_hf.zoo.presets import PRESETS
    from offseg_hf.zoo.results import load_results

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    for title in ("mIoU", "params", "GMACs", "classes"):
        table.add_column(title, justify="right")
    table.add_column("tested at")
    results = load_results()
    for preset in PRESETS.values():
        result, _ = results.of(preset)
        size = f"{preset.scale[0]}x{preset.scale[1]}"
        table.add_row(
            preset.name,
            f"{result.miou:.1f}",
            f"{preset.num_parameters / 1e6:.2f} M",
            f"{result.gmacs:.1f}",
            str(len(preset.labels)),
            f"{size} in {preset.window}/{preset.stride}" if preset.window else size,
        )
    stdout.print(table)
    stdout.print(
        "mIoU: the paper's, in %, at one scale. GMACs: of our models, at the paper's image sizes.\n"
        "Tested at: longest and shortest side that a photo is resized into; side and stride of sliding windows.\n"
        "Weights: none is hosted yet; `offseg convert` makes them from the authors' checkpoints."
    )
