"""The README.md of an exported folder: what it is, how it was checked, and what may be done with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offseg_hf.export.end_to_end import FILE
from offseg_hf.export.runtime import FILES


def write_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the card of an exported folder, by its report."""
    size = report["size"]
    number = "any number of images" if report["batch_size"] is None else "one image"
    taken = f"{number} of {'any size' if size is None else f'{size[1]}x{size[0]}'}"
    files = " and ".join(f"`{file}`" for file in FILES[report["format"]])
    lines = [
        f"# {report['model']}, exported",
        f"{files}: the network in {report['precision']}, for {taken}, written by offseg-hf {report['offseg_hf']}. "
        "The protocol (resizing, normalization, windows) and the classes are in the file's own metadata, and in "
        "`preprocessor_config.json` and `config.json`. `offseg segment`, `offseg evaluate` and transformers' "
        '`pipeline("image-segmentation")` take this folder as they take a model.',
        "## Check",
        *check_lines(report),
        "## License",
        "That of the weights: see the model card of the source.",
    ]
    (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def check_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what a check has found, in words."""
    height, width = report["image"]
    lines = [
        f"{100 * report['equal_labels']:.3f} % of labels are equal on {report['photos']} "
        f"{'generated scenes' if report['generated'] else 'photos'}; logits differ by at most "
        f"{report['largest_difference']:.1e} of {report['largest_logit']:.3g}",
        f"{report['runtime_ms']:g} ms for an image of {width}x{height}, with PyTorch {report['torch_ms']:g} ms; "
        f"a file of {report['megabytes']:g} MB",
    ]
    if report["runtime_memory_mb"] is not None:
        lines.append(f"{report['runtime_memory_mb']:g} MB of memory, with PyTorch {report['torch_memory_mb']:g} MB")
    if "runtime_miou" in report:
        lines.append(f"mIoU {report['runtime_miou']:.2f}, with PyTorch {report['torch_miou']:.2f}")
    if report["computed_in"] != report["precision"]:
        lines.append(f"this processor has no {report['precision']}: checked and timed in {report['computed_in']}")
    if "stretched" in report:
        other = report["stretched"]
        miou = "" if other["official_miou"] is None else f", whose mIoU is {other['official_miou']:.2f}"
        share = f"{100 * other['equal_labels']:.2f} % of the labels"
        lines.append(f"{other['protocol']}; {share} are those of the official protocol{miou}")
    if "end_to_end" in report:
        photo = report["end_to_end"]
        lines.append(
            f"`{FILE}`, from uint8 pixels to labels, is {photo['protocol']}: {100 * photo['equal_labels']:.2f} % of "
            f"the labels are those of the official protocol; {photo['ms']:g} ms for a photo"
        )
    return lines
