"""Large pictures, read from top to bottom, and their label maps, written so.

TIFFs, and whatever is larger than Pillow decodes, are read by rasterio, and only the rows asked for are in memory; all
else by Pillow, whole: 3 bytes a pixel.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from PIL import ExifTags, Image

from offseg_hf.data.label_sets import IGNORE_INDEX
from offseg_hf.data.reading import to_rgb
from offseg_hf.inference.outputs import TIFF_EXTENSIONS, Classes
from offseg_hf.models.image_operations import read_image
from offseg_hf.utils.extras import require
from offseg_hf.utils.texts import one_line


BLOCK = 256  # side of the tiles of a TIFF
GDAL_CACHE = 64  # MB
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_CLASS_COLOR = (224, 224, 224)


class Picture(Protocol):
    """A picture that is read once, from top to bottom."""

    @property
    def height(self) -> int:
        """Return how many rows it has."""

    @property
    def width(self) -> int:
        """Return how many columns it has."""

    @property
    def has_gaps(self) -> bool:
        """Return whether pixels may have no data."""

    @property
    def georeference(self) -> dict[str, Any]:
        """Return where it lies, as rasterio writes it; nothing where that is not known."""

    def read(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows as uint8 or float32 (channels, rows, width), and where they have data (rows, width)."""


@dataclass(frozen=True)
class ArrayPicture:
    """A picture in memory: (channels, height, width)."""

    pixels: np.ndarray
    has_gaps: bool = False
    georeference: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, photo: Any) -> Self:
        """Return a picture of what is one for an image processor."""
        return cls(read_image(photo))

    @property
    def height(self) -> int:
        """Return how many rows it has."""
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        """Return how many columns it has."""
        return self.pixels.shape[2]

    def read(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows, all with data."""
        return self.pixels[:, begin:end], np.ones((end - begin, self.width), bool)


class RasterPicture:
    """A picture that rasterio reads, in red, green and blue; alpha and nodata are gaps.

    Args:
        dataset: of rasterio, open.

    Raises:
        ValueError: for one without three bands or one, and for one to be turned.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.height, self.width = dataset.height, dataset.width
        names = [color.name for color in dataset.colorinterp]
        wanted = ("red", "green", "blue")
        self.colors: np.ndarray | None = None
        if set(wanted) <= set(names):
            self.bands = [names.index(color) + 1 for color in wanted]
        elif dataset.count >= 3:
            self.bands = [1, 2, 3]
        else:
            self.bands = [1]
            if names[0] == "palette":
                self.colors = np.zeros((256, 3), np.uint8)
                for index, color in dataset.colormap(1).items():
                    self.colors[index] = color[:3]
        self.has_gaps = any("ALL_VALID" not in {flag.name.upper() for flag in flags} for flags in self._flags())
        if dataset.tags().get("EXIF_Orientation", "1") != "1":
            raise ValueError("it is to be turned (EXIF), and too large for that: turn its pixels before")
        self.georeference = {"crs": dataset.crs, "transform": dataset.transform}
        points, system = dataset.gcps
        if points:
            self.georeference = {"gcps": points, "crs": system}
        elif dataset.crs is None and dataset.transform.is_identity:
            self.georeference = {}
        if dataset.rpcs is not None:
            self.georeference["rpcs"] = dataset.rpcs

    def _flags(self) -> list:
        return [self.dataset.mask_flag_enums[band - 1] for band in self.bands]

    def read(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows; of 16 bits the upper 8, as of photos."""
        window = ((begin, end), (0, self.width))
        pixels = self.dataset.read(self.bands, window=window)
        valid = np.ones(pixels.shape[1:], bool)
        if self.has_gaps:
            valid = self.dataset.dataset_mask(window=window) > 0
            if pixels.dtype.kind == "f":
                pixels = np.where(np.isfinite(pixels) & valid, pixels, 0)
        if self.colors is not None:
            return np.moveaxis(self.colors[pixels[0]], -1, 0), valid
        return read_image(np.broadcast_to(pixels, (3, *pixels.shape[1:])), input_data_format="channels_first"), valid


@contextmanager
def open_picture(path: Path) -> Iterator[Picture]:
    """Open a picture.

    Raises:
        ValueError: If it cannot be read, or if rasterio is needed and not there.
    """
    is_tiff = path.suffix.lower() in TIFF_EXTENSIONS
    if not is_tiff or _is_turned(path):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large ones are meant
                with Image.open(path) as image:
                    image.load()
                    picture = ArrayPicture.of(to_rgb(image))
        except Image.DecompressionBombError:
            pass  # it is read by rows below, in bounded memory whatever it says that it has
        except Exception as error:  # Pillow's decoders raise almost anything on broken files
            raise ValueError(f"cannot be read as an image: {one_line(error)}") from error
        else:
            yield picture
            return
    rasterio = require("rasterio", "geo")
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE), _without_warnings(rasterio):
        try:
            dataset = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise ValueError(f"cannot be read as an image: {one_line(error)}") from error
        with dataset:
            yield RasterPicture(dataset)


@contextmanager
def _without_warnings(rasterio: Any) -> Iterator[None]:
    """Let pictures be without a georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def _is_turned(path: Path) -> bool:
    """Return whether a TIFF's own orientation is another than GDAL, which does not know it, takes it for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # of more bands or larger than Pillow takes
        return False


class LabelMapWriter(Protocol):
    """A label map that is written from top to bottom; a context that ends it."""

    def write(self, rows: np.ndarray) -> None:
        """Write the next rows (rows, width)."""


@contextmanager
def label_map_writer(path: Path, picture: Picture, classes: Classes) -> Iterator[LabelMapWriter]:
    """Begin the label map of a picture: a PNG, or a tiled TIFF with the picture's georeference, by the ending.

    Pixels without data have `classes.ignore_index`, of a TIFF its nodata.
    """
    if path.suffix != ".tif":
        with path.open("wb") as file:
            png = PngWriter(file, picture.width, picture.height, classes)
            yield png
            png.end()
        return
    rasterio = require("rasterio", "geo")
    settings: dict[str, Any] = dict(picture.georeference)
    rpcs = settings.pop("rpcs", None)
    if picture.has_gaps:
        settings["nodata"] = classes.ignore_index
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE), _without_warnings(rasterio):
        dataset = rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=picture.width,
            height=picture.height,
            count=1,
            dtype=np.min_scalar_type(classes.ignore_index).name,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="deflate",
            BIGTIFF="IF_SAFER",
            **settings,
        )
        with dataset:
            if rpcs is not None:
                dataset.rpcs = rpcs
            if classes.ignore_index == IGNORE_INDEX:
                dataset.write_colormap(1, dict(enumerate(_colors(classes))))
            tiff = TiffWriter(dataset)
            yield tiff
            tiff.end()


def _colors(classes: Classes) -> list[tuple[int, int, int]]:
    return [*classes.palette, *[NO_CLASS_COLOR] * (256 - len(classes.palette))]


class TiffWriter:
    """Rows to whole tiles of a TIFF: one that is written in parts would be compressed, and stored, as often.

    Args:
        dataset: of rasterio, open for writing.
    """

    def __init__(self, dataset: Any):
        self.dataset, self.top = dataset, 0
        self.waiting = np.empty((0, dataset.width), dataset.dtypes[0])

    def write(self, rows: np.ndarray) -> None:
        """Write the next rows, as far as they fill tiles."""
        self.waiting = np.concatenate([self.waiting, rows])
        self._write(len(self.waiting) // BLOCK * BLOCK)

    def end(self) -> None:
        """Write what is left."""
        self._write(len(self.waiting))

    def _write(self, number: int) -> None:
        if number:
            window = ((self.top, self.top + number), (0, self.dataset.width))
            self.dataset.write(self.waiting[:number], 1, window=window)
            self.waiting, self.top = self.waiting[number:], self.top + number


class PngWriter:
    """A PNG whose rows come one after the other: with a palette, or 16-bit gray for 256 classes or more.

    Args:
        file: open for writing.
        width: of the picture.
        height: of it.
        classes: whose colors it is shown in.
    """

    def __init__(self, file: BinaryIO, width: int, height: int, classes: Classes):
        self.file, self.compressor = file, zlib.compressobj()
        self.is_wide = classes.ignore_index > IGNORE_INDEX
        file.write(PNG_SIGNATURE)
        bits, kind = (16, 0) if self.is_wide else (8, 3)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
        if not self.is_wide:
            self._chunk(b"PLTE", bytes(value for color in _colors(classes) for value in color))

    def write(self, rows: np.ndarray) -> None:
        """Write the next rows."""
        values = np.ascontiguousarray(rows.astype(">u2" if self.is_wide else np.uint8)).view(np.uint8)
        lines = np.zeros((len(rows), values.shape[1] + 1), np.uint8)  # each begins with its filter: none
        lines[:, 1:] = values
        self._chunk(b"IDAT", self.compressor.compress(lines.tobytes()))

    def end(self) -> None:
        """Write what is left."""
        self._chunk(b"IDAT", self.compressor.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, name: bytes, content: bytes) -> None:
        if content or name == b"IEND":
            checksum = zlib.crc32(name + content)
            self.file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum))
