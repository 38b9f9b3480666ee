"""What `segment` writes of a photo: pictures to look at, or labels for training and for annotation tools.

Each kind names its files and fills temporary ones, which `segment` puts in their places together. Labels may leave
pixels out that the model was not sure of.
"""

import filecmp
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from offseg_hf.data.classes_json import FILE_NAME, classes_json, read_classes
from offseg_hf.data.formats.masks import encode_brush
from offseg_hf.data.label_sets import IGNORE_INDEX, LabelSet
from offseg_hf.utils.files import whole_file
from offseg_hf.visualization import Palette, class_shares, draw_overlay, label_image


TIFF_EXTENSIONS = (".tif", ".tiff")
IMAGES, MASKS = "images/train", "masks/train"
MANY_CLASSES_IGNORE_INDEX = 65534  # of label maps of 16 bits, for 256 classes or more


@dataclass(frozen=True)
class Classes:
    """The classes of a model."""

    names: list[str]
    palette: Palette

    @property
    def ignore_index(self) -> int:
        """Return the id of pixels without a class."""
        return IGNORE_INDEX if len(self.names) <= IGNORE_INDEX else MANY_CLASSES_IGNORE_INDEX

    def label_set(self) -> LabelSet:
        """Return the label set of masks that hold ids."""
        return LabelSet(
            name="custom",
            title="Custom",
            names=tuple(self.names),
            palette=tuple(self.palette),
            raw_ids=tuple(range(len(self.names))),
            void_ids=(self.ignore_index,),
            reduce_zero_label=False,
            ignore_index=self.ignore_index,
        )


@dataclass(frozen=True)
class Labeled:
    """A photo and what the model says of it.

    Args:
        source: its file.
        place: its file below the folder that was searched.
        image: upright RGB.
        label_map: ids (height, width), `classes.ignore_index` where the model was not sure.
        classes: of the model.
    """

    source: Path
    place: Path
    image: Image.Image
    label_map: np.ndarray
    classes: Classes


class OutputKind(Protocol):
    """Files that are written of each photo.

    Attributes:
        copies: how many of them, the first ones, only copy the photo: alone they are no result.
    """

    copies: ClassVar[int] = 0

    def files(self, name: Path, source: Path) -> list[Path]:
        """Return the files of a photo, below the output folder; `name` is that of the photo without others' ending."""

    def owns(self, file: Path) -> bool:
        """Return whether a file, below the output folder, is one that may have been written there."""

    def begin(self, output: Path, classes: Classes) -> None:
        """Write what all photos share."""

    def write(self, photo: Labeled, temporary: list[Path], targets: list[Path]) -> None:
        """Fill the temporary files of a photo, which become the targets."""


@dataclass(frozen=True)
class Pictures(OutputKind):
    """Label map, overlay and class shares of a photo, beside each other.

    Args:
        opacity: Of the colors over the photo, in 0..1.
    """

    opacity: float = 0.6
    suffixes: ClassVar = ("_labels.png", "_overlay.png", "_classes.json")

    def files(self, name: Path, source: Path) -> list[Path]:
        """Return three files."""
        return [_suffixed(name, suffix) for suffix in self.suffixes]

    def owns(self, file: Path) -> bool:
        """Return whether a file has one of the endings, or is a label map of a frame of a video."""
        return file.name.endswith((*self.suffixes, "_labels.tif")) or file.parent.name.endswith(
            ("_labels", "_labels.partial")
        )

    def begin(self, output: Path, classes: Classes) -> None:
        """Write nothing."""

    def write(self, photo: Labeled, temporary: list[Path], targets: list[Path]) -> None:
        """Write the three."""
        names, palette = photo.classes.names, photo.classes.palette
        shares = {
            "file": str(photo.source),
            "width": photo.image.width,
            "height": photo.image.height,
            "classes": [
                {"id": index, "name": names[index], "pixels": pixels, "share": round(share, 6)}
                for index, pixels, share in class_shares(photo.label_map, len(names))
            ],
        }
        label_image(photo.label_map, palette).save(temporary[0])
        overlay = draw_overlay(photo.image, photo.label_map, names, palette, self.opacity)
        overlay.save(temporary[1], compress_level=1)  # a fifth larger than by default, in a sixth of the time
        write_json(temporary[2], shares, indent=2)


@dataclass(frozen=True)
class LargePictures(Pictures):
    """The same of a picture at its own resolution, which `tiles` writes: of a TIFF the label map is one too."""

    def files(self, name: Path, source: Path) -> list[Path]:
        """Return three files."""
        suffix = "_labels.tif" if source.suffix.lower() in TIFF_EXTENSIONS else "_labels.png"
        return [_suffixed(name, each) for each in (suffix, *self.suffixes[1:])]


@dataclass(frozen=True)
class TrainingData(OutputKind):
    """A folder that training reads: the photos, their masks, and classes.json."""

    copies: ClassVar[int] = 1

    def files(self, name: Path, source: Path) -> list[Path]:
        """Return the photo's copy and its mask."""
        return [Path(IMAGES, f"{name}{source.suffix}"), Path(MASKS, f"{name}.png")]

    def owns(self, file: Path) -> bool:
        """Return whether a file lies where images and masks are written."""
        return file.is_relative_to(IMAGES) or file.is_relative_to(MASKS)

    def begin(self, output: Path, classes: Classes) -> None:
        """Write classes.json; raises ValueError if there is one of other classes."""
        path = output / FILE_NAME
        if not path.exists():
            with whole_file(path) as temporary:
                temporary.write_text(classes_json(classes.label_set()), encoding="utf-8")
        known, ours = read_classes(path), classes.label_set()
        if (known.names, known.raw_ids, known.ignore_index) != (ours.names, ours.raw_ids, ours.ignore_index):
            raise ValueError(f"{path} has other classes than the model, or other values of them: name another output")

    def write(self, photo: Labeled, temporary: list[Path], targets: list[Path]) -> None:
        """Copy the photo, and write its mask."""
        if targets[0].exists() and not filecmp.cmp(photo.source, targets[0], shallow=False):
            raise ValueError(f"{targets[0]} exists and is another photo: name another output")
        shutil.copyfile(photo.source, temporary[0])
        mask_image(photo.label_map, photo.classes).save(temporary[1])


@dataclass(frozen=True)
class LabelStudio(OutputKind):
    """Pre-annotations for Label Studio: a task with a brush stroke for each class, and the labeling configuration."""

    def files(self, name: Path, source: Path) -> list[Path]:
        """Return the task."""
        return [_suffixed(name, "_task.json")]

    def owns(self, file: Path) -> bool:
        """Return whether a file is a task, which no photo is."""
        return False

    def begin(self, output: Path, classes: Classes) -> None:
        """Write the labeling configuration."""
        lines = [
            f'    <Label value={quoteattr(name)} background="#{bytes(color).hex()}"/>'
            for name, color in zip(classes.names, classes.palette, strict=True)
        ]
        brush = ['  <BrushLabels name="tag" toName="image">', *lines, "  </BrushLabels>"]
        text = "\n".join(["<View>", '  <Image name="image" value="$image"/>', *brush, "</View>"])
        with whole_file(output / "labeling_config.xml") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def write(self, photo: Labeled, temporary: list[Path], targets: list[Path]) -> None:
        """Write a list of one task, as Label Studio imports it."""
        size = {"original_width": photo.image.width, "original_height": photo.image.height, "image_rotation": 0}
        names = photo.classes.names
        result = [
            {
                "id": f"class-{index}",
                "type": "brushlabels",
                "from_name": "tag",
                "to_name": "image",
                **size,
                "value": {
                    "format": "rle",
                    "rle": encode_brush(photo.label_map == index),
                    "brushlabels": [names[index]],
                },
            }
            for index, _, _ in class_shares(photo.label_map, len(names))
        ]
        address = f"/data/local-files/?d={quote(photo.place.as_posix())}"
        task = {"data": {"image": address}, "predictions": [{"model_version": "offseg", "result": result}]}
        write_json(temporary[0], [task])


@dataclass(frozen=True)
class FiftyOne(OutputKind):
    """Samples for FiftyOne: a mask, and a JSON of `fiftyone.Sample.from_dict`; 0 is no class there, ids begin at 1."""

    def files(self, name: Path, source: Path) -> list[Path]:
        """Return mask and sample."""
        return [_suffixed(name, suffix) for suffix in ("_mask.png", "_sample.json")]

    def owns(self, file: Path) -> bool:
        """Return whether a file is a mask."""
        return file.name.endswith("_mask.png")

    def begin(self, output: Path, classes: Classes) -> None:
        """Write the names of the masks' values."""
        with whole_file(output / "mask_targets.json") as temporary:
            write_json(temporary, {index + 1: name for index, name in enumerate(classes.names)}, indent=2)

    def write(self, photo: Labeled, temporary: list[Path], targets: list[Path]) -> None:
        """Write both."""
        known = photo.label_map != photo.classes.ignore_index
        values = np.where(known, photo.label_map.astype(np.int64) + 1, 0)
        Image.fromarray(values.astype(np.uint8 if len(photo.classes.names) < 256 else np.uint16)).save(temporary[0])
        mask = {"_cls": "Segmentation", "tags": [], "mask_path": str(targets[0].absolute())}
        sample = {"filepath": str(photo.source.absolute()), "tags": ["prediction"], "predictions": mask}
        write_json(temporary[1], sample)


def mask_image(label_map: np.ndarray, classes: Classes) -> Image.Image:
    """Return a mask whose values are class ids and the ignore index; of 16 bits for 256 classes or more."""
    if classes.ignore_index > IGNORE_INDEX:
        return Image.fromarray(label_map.astype(np.uint16))
    # Of all 256 colors: a shorter palette would make Pillow write fewer bits, and void another value.
    colors = [*classes.palette, *[(224, 224, 224)] * (256 - len(classes.palette))]
    return label_image(label_map, colors)


def _suffixed(name: Path, suffix: str) -> Path:
    return name.with_name(name.name + suffix)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, with names as they are."""
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
