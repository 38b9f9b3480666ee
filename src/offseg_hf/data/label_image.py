"""The column of label maps: files in their data set's own encoding, read as class ids by a table.

A feature of `datasets`, so that names, palette and encoding are part of the data set's features: they survive `map`,
`shuffle`, `save_to_disk`, and nothing has to be computed or written before the first sample is read.
"""

import warnings
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Image
from datasets.features.features import register_feature
from PIL import Image as PILImage

from offseg_hf.data.label_sets import IGNORE_INDEX, LABEL_SETS, LabelSet
from offseg_hf.utils.texts import printable, reading_error


ONE_CHANNEL = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I;16N", "I")
UNKNOWN = 65535  # in the table: the value is none of the data set's


@dataclass
class LabelImage(Image):
    """Label maps that decode to class ids 0..K-1 and `ignore_index`: mode L, or I;16 if an id needs it.

    Args:
        name: of the label set.
        title: the same for people.
        names: of the classes.
        palette: colors of the classes.
        raw_ids: values of the classes in the files.
        void_ids: values in the files that are no class; any other value is an error, which names the file.
        ignore_index: what those become.
        raw: whether cells that do not say so themselves are such files; otherwise they hold class ids, as the images
            do that `Dataset.map` makes out of what it read. Each cell remembers which of the two it is.
    """

    name: str = ""
    title: str = ""
    names: list = field(default_factory=list, repr=False)
    palette: list = field(default_factory=list, repr=False)
    raw_ids: list = field(default_factory=list, repr=False)
    void_ids: list = field(default_factory=list, repr=False)
    ignore_index: int = IGNORE_INDEX
    raw: bool = False

    pa_type: ClassVar[Any] = pa.struct({"bytes": pa.binary(), "path": pa.string(), "raw": pa.bool_()})
    _type: str = field(default="LabelImage", init=False, repr=False)

    @classmethod
    def of(cls, labels: LabelSet, raw: bool = False, decode: bool = True) -> "LabelImage":
        """Return the column of a label set whose files hold its `raw_ids` and `void_ids`."""
        return cls(
            decode=decode,
            name=labels.name,
            title=labels.title,
            names=list(labels.names),
            palette=[list(color) for color in labels.palette],
            raw_ids=list(labels.raw_ids),
            void_ids=list(labels.void_ids),
            ignore_index=labels.ignore_index,
            raw=raw,
        )

    def label_set(self) -> LabelSet:
        """Return the benchmark's label set where it is one, however its files are encoded; else the files' own."""
        known = LABEL_SETS.get(self.name)
        if known is not None and list(known.names) == self.names:
            return known
        counts_from_one = self.raw_ids == list(range(1, len(self.names) + 1)) and self.void_ids == [0]
        return LabelSet(
            name=self.name,
            title=self.title,
            names=tuple(self.names),
            palette=tuple(tuple(color) for color in self.palette),
            raw_ids=tuple(self.raw_ids),
            void_ids=tuple(self.void_ids),
            reduce_zero_label=counts_from_one,
            ignore_index=self.ignore_index,
        )

    def undecoded(self) -> "LabelImage":
        """Return the column that gives bytes and path of the files."""
        return replace(self, decode=False)  # type: ignore[call-arg] # a field of Image

    def encode_example(self, value: Any) -> dict:
        """Encode a cell as `datasets` stores it, with what it holds."""
        if isinstance(value, dict) and "raw" in value:
            return value
        is_file = isinstance(value, str | Path | bytes | dict)  # images in memory hold ids, as they are read
        return {**Image().encode_example(value), "raw": self.raw and is_file}

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> PILImage.Image:
        """Return the class ids of a cell, as `read` does, with the file's name in its errors."""
        if not isinstance(value, dict):
            return value  # decoded already
        try:
            return self.read(value, token_per_repo_id)
        except ValueError as error:
            raise ValueError(printable(f"{value.get('path') or 'label map'}: {error}")) from error.__cause__

    def read(self, cell: dict, token_per_repo_id: dict | None = None) -> PILImage.Image:
        """Return the class ids of a cell.

        Pictures in RGB are read by the colors of the palette, where no two classes share one.

        Raises ValueError for what cannot be read, for pictures in a form that changes ids, and for values or colors
        that are no class.
        """
        try:
            image = super().decode_example(cell, token_per_repo_id)
        except Exception as error:  # Pillow's decoders raise almost anything on broken files
            raise ValueError(f"cannot be read as a label map: {reading_error(error)}") from error
        if image.format in ("JPEG", "MPO"):
            raise ValueError("expected a label map without loss, got a JPEG, which changes ids: use PNG")
        if image.mode in ("RGB", "RGBA"):
            return self._from_colors(image)
        if image.mode not in ONE_CHANNEL:
            reason = "floats are no ids" if image.mode == "F" else "expected ids, or colors in RGB"
            raise ValueError(
                f"expected a label map of one id per pixel, got a picture of mode {image.mode}; {reason}, "
                "save the ids as a grayscale or palette PNG"
            )
        raw = cell.get("raw")
        return self._to_ids(image, self.raw if raw is None else raw)

    def _table(self, raw: bool) -> np.ndarray:
        """Return the class id of each value in the file; UNKNOWN for values that should not occur."""
        cached = self.__dict__.setdefault("_tables", {})
        if raw not in cached:
            classes = self.raw_ids if raw else range(len(self.names))
            void = [*self.void_ids] if raw else [self.ignore_index]
            table = np.full(1 << 16, UNKNOWN, np.uint16)
            table[void] = self.ignore_index
            table[list(classes)] = np.arange(len(self.names))
            cached[raw] = table
        return cached[raw]

    def _to_ids(self, image: PILImage.Image, raw: bool) -> PILImage.Image:
        table = self._table(raw)
        largest_id = max(len(self.names) - 1, self.ignore_index)
        free_id = len(self.names) + (self.ignore_index == len(self.names))  # means UNKNOWN in 8 bits
        if image.mode in ("L", "P") and largest_id < 256 and free_id < 256:  # Pillow's tables are faster than numpy's
            ids = image.point(np.where(table[:256] == UNKNOWN, free_id, table[:256]).tolist(), "L")
            if (np.asarray(ids) == free_id).any():
                self._check(np.flatnonzero(image.histogram()), raw)
            return ids
        values = np.asarray(image)
        if values.dtype == bool or values.dtype.kind == "i":
            values = values.astype(np.int64)
        if values.min() < 0 or values.max() >= len(table):
            raise ValueError(f"expected values in 0..65535, got {values.min()}..{values.max()}")
        ids = table[values]
        if (ids == UNKNOWN).any():
            self._check(np.unique(values), raw)
        return PILImage.fromarray(ids.astype(np.uint8) if largest_id < 256 else ids)

    def _from_colors(self, image: PILImage.Image) -> PILImage.Image:
        """Return the class ids of a picture in the colors of the palette; black that is no class's is void."""
        got = f"expected a label map of one id per pixel, got a picture of mode {image.mode}"
        colors = [tuple(color) for color in self.palette]
        if twice := next((color for color in colors if colors.count(color) > 1), None):
            first, second = [name for name, color in zip(self.names, colors, strict=True) if color == twice][:2]
            raise ValueError(
                f"{got}; colors cannot be turned back into classes where {first} and {second} are both {twice}, save "
                "the ids as a grayscale or palette PNG"
            )
        rgba = np.asarray(image)
        if rgba.shape[2] == 4 and (rgba[..., 3] < 255).any():
            raise ValueError(f"{got} with transparent pixels; save it in opaque colors, as RGB")
        void = [] if (0, 0, 0) in colors else [(0, 0, 0)]
        values = [*range(len(colors)), *[self.ignore_index] * len(void)]
        ids, unknown = color_values(rgba[..., :3], np.asarray(colors + void), np.asarray(values, np.uint16))
        if unknown is None and (ids == self.ignore_index).all():
            unknown = (0, 0, 0)  # nothing but black is no label map in these colors
        if unknown is not None:
            gray = "; where its channels are ids, save one of them as grayscale" if len({*unknown}) == 1 else ""
            raise ValueError(f"{got}, whose color {unknown} is none of the `palette` of {self.title}{gray}")
        return PILImage.fromarray(ids.astype(np.uint8) if max(len(colors) - 1, self.ignore_index) < 256 else ids)

    def _check(self, values: np.ndarray, raw: bool) -> None:
        table = self._table(raw)
        unknown = values[table[values] == UNKNOWN].tolist()
        if unknown:
            known = ", ".join(_ranges(np.flatnonzero(table != UNKNOWN).tolist()))
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            plural = "s" if len(unknown) > 1 else ""
            count = len(self.names)
            counts_from_one = unknown == [count] and 0 not in values and self.raw_ids == list(range(count))
            hint = (
                f'if they count from 1, "values" in classes.json are 1 to {count}'
                if counts_from_one
                else "classes.json says which values are classes, or void"
            )
            raise ValueError(f"value{plural} {shown} out of range, in {self.title} there are {known}; {hint}")

    # -- Arrow: as of images, and of each cell whether it is a file in the data set's encoding -----------------------

    def cast_storage(self, storage: pa.Array) -> pa.StructArray:
        """Cast an array to the type of the column."""
        raw = None
        if pa.types.is_struct(storage.type) and storage.type.get_field_index("raw") >= 0:
            raw = storage.field("raw")
        if raw is None or pa.types.is_null(raw.type):
            raw = pa.array(np.full(len(storage), self.raw))
        return _with_raw(Image().cast_storage(storage), raw)

    def embed_storage(self, storage: pa.StructArray, *args, **kwargs) -> pa.StructArray:
        """Put the content of files into an array that has their paths."""
        plain = pa.StructArray.from_arrays(
            [storage.field("bytes"), storage.field("path")], ["bytes", "path"], mask=storage.is_null()
        )
        return _with_raw(Image().embed_storage(plain, *args, **kwargs), storage.field("raw"))

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_tables"}


def color_values(
    rgb: np.ndarray, colors: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int] | None]:
    """Return the value of each pixel's color, and a color that has none, if there is one.

    Args:
        rgb: (height, width, 3) uint8.
        colors: (colors, 3), all different.
        values: (colors,) of any type, which the result has too.
    """
    codes = np.asarray(colors, np.int64) @ [65536, 256, 1]
    order = np.argsort(codes)
    pixels = rgb.astype(np.int32) @ np.asarray([65536, 256, 1], np.int32)
    found = np.minimum(np.searchsorted(codes[order], pixels), len(codes) - 1)
    unknown = pixels[codes[order][found] != pixels]
    color = divmod(int(unknown[0]), 256) if unknown.size else None
    return values[order][found], color and (*divmod(color[0], 256), color[1])


def encode_ids(ids: PILImage.Image) -> bytes:
    """Encode a map of class ids as PNG."""
    buffer = BytesIO()
    ids.save(buffer, format="PNG")
    return buffer.getvalue()


def _with_raw(images: pa.StructArray, raw: pa.Array) -> pa.StructArray:
    arrays = [images.field("bytes"), images.field("path"), raw]
    return pa.StructArray.from_arrays(arrays, ["bytes", "path", "raw"], mask=images.is_null())


def _ranges(values: list[int]) -> list[str]:
    """Write sorted values as "0-10", "12", ..."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


with warnings.catch_warnings():  # it says that it is experimental
    warnings.simplefilter("ignore", UserWarning)
    register_feature(LabelImage, "LabelImage")
