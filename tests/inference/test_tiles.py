"""Pictures at their own resolution: the tiles, how they are blended, and what is read and written on the way."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin
from torch import nn
from transformers import BatchFeature

from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export.export import ExportOptions, export_model
from offseg_hf.inference.files import plan
from offseg_hf.inference.outputs import Classes, LargePictures
from offseg_hf.inference.rasters import ArrayPicture, label_map_writer
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.inference.tiles import TileOptions, label_map_by_tiles, label_strips, segment_by_tiles, spans
from offseg_hf.models.image_operations import upsampled_argmax
from tests.cli.running import assert_one_line, offseg
from tests.processes import run_python
from tests.small_model import save_small_model
from tests.tiny import tiny_model, tiny_processor


SMALL = TileOptions(tile=128, overlap=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "segformer")


@pytest.fixture
def segmenter(folder) -> Segmenter:
    return Segmenter(folder, device="cpu")


class Local(nn.Module):
    """Scores at a quarter of the size, each sees three across; with `of_all` the mean of all pixels, too."""

    def __init__(self, of_all: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 10, 3, padding=1))
        self.of_all = of_all

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        scores = self.layers(pixel_values)
        means = pixel_values.mean(dim=(2, 3)) @ torch.linspace(-1, 1, 30).view(3, 10)
        return SimpleNamespace(logits=scores + self.of_all * means[..., None, None])


def with_network(segmenter: Segmenter, network: nn.Module) -> Segmenter:
    segmenter.network = network
    return segmenter


def padded(segmenter: Segmenter, photo: Image.Image) -> torch.Tensor:
    pixels = segmenter.processor(images=photo, do_resize=False, return_tensors="pt")["pixel_values"]
    height, width = pixels.shape[2:]
    return F.pad(pixels, (0, -width % 32, 0, -height % 32))


# -- the tiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "overlap"), [(128, 0), (128, 32), (256, 64), (1024, 128), (1024, 256)])
def test_tiles_cover_every_length(tile, overlap):
    """By as few as can be; their weights sum to one, and no three of them meet."""
    for length in (1, 31, *range(tile - 33, 5 * tile, 37), 20_000):
        parts = spans(length, tile, overlap)
        assert len(parts) == max(1, -(-(-(-max(length - tile, 0) // 32) * 32) // ((tile - overlap) // 32 * 32)) + 1)
        assert parts[0].first == parts[0].start == 0 and parts[-1].last == parts[-1].stop >= length
        assert parts[-1].stop < max(length, tile) + 32 and parts[-1].after is None
        for one, other in pairwise(parts):
            assert one.after == other.first and one.last == other.first + overlap
            assert other.start <= other.first and one.last <= one.stop  # both see what is blended
            assert one.first + overlap <= other.first
        assert all(part.start % 32 == part.first % 32 == 0 for part in parts)


def test_cores_are_those_of_the_whole_picture(segmenter):
    """Of a network that sees near pixels only; everything, where the overlap is beyond what it sees at the edges."""
    network = Local()
    with_network(segmenter, network)
    for size in ((333, 270), (128, 129), (60, 40), (641, 30)):
        photo = render_scene(0, size)[0]
        pixels = padded(segmenter, photo)
        whole = F.interpolate(network(pixels).logits, size=pixels.shape[2:], mode="bilinear")[0].argmax(dim=0)
        whole = whole[: size[1], : size[0]].numpy()
        tiled = label_map_by_tiles(photo, segmenter, SMALL)
        assert tiled.shape == whole.shape and tiled.dtype == np.uint8
        rows, columns = spans(size[1], 128, 32), spans(size[0], 128, 32)
        core = np.ones(whole.shape, bool)
        for part in rows[1:]:
            core[part.first - 2 : part.first + 34] = False
        for part in columns[1:]:
            core[:, part.first - 2 : part.first + 34] = False
        assert (tiled == whole)[core].all()
        assert (tiled == whole).mean() > 0.999


@pytest.mark.parametrize("overlap", [0, 32])
@pytest.mark.parametrize("cell", [4, 1])
def test_blending_is_the_weighted_mean_of_tiles(segmenter, overlap, cell):
    """Computed anew for the whole picture at once, with scores that no two tiles share."""
    network = Local(of_all=5.0)

    def fine(pixels):
        logits = network(pixels).logits
        return SimpleNamespace(
            logits=logits if cell == 4 else F.interpolate(logits, pixels.shape[2:], mode="bilinear")
        )

    with_network(segmenter, fine)
    photo = render_scene(1, (421, 300))[0]
    pixels = padded(segmenter, photo)
    rows, columns = spans(300, 128, overlap), spans(421, 128, overlap)

    def weights(parts, part, length):
        at = torch.arange(0, length, cell) + cell / 2
        rise = lambda place: 3 * place**2 - 2 * place**3  # noqa: E731
        result = ((at >= part.start) & (at < part.stop)).float()
        index = parts.index(part)
        if index:
            result *= rise(((at - part.first) / max(overlap, 1e-9)).clamp(0, 1))
        if index + 1 < len(parts):
            result *= rise((1 - (at - parts[index + 1].first) / max(overlap, 1e-9)).clamp(0, 1))
        return result

    length = (rows[-1].stop, columns[-1].stop)
    pixels = F.pad(pixels, (0, length[1] - pixels.shape[3], 0, length[0] - pixels.shape[2]))
    total = torch.zeros(10, length[0] // cell, length[1] // cell)
    share = torch.zeros(total.shape[1:])
    for row in rows:
        for column in columns:
            scores = fine(pixels[:, :, row.start : row.stop, column.start : column.stop]).logits[0]
            weight = weights(rows, row, length[0])[:, None] * weights(columns, column, length[1])
            place = (slice(row.start // cell, row.stop // cell), slice(column.start // cell, column.stop // cell))
            total[:, *place] += scores * weight[place]
            share += weight
    assert torch.allclose(share, torch.ones_like(share), atol=1e-5)
    expected = upsampled_argmax(total, length)[:300, :421].numpy()
    for batch_size in (1, 3):
        options = TileOptions(tile=128, overlap=overlap, batch_size=batch_size)
        assert (label_map_by_tiles(photo, segmenter, options) == expected).mean() > 0.9999


@pytest.mark.parametrize("family", ["offseg", "segnext", "mask2former"])
def test_one_tile_is_the_picture(family, tmp_path):
    """Of every family: masks, too, whose scores are of all pixels."""
    tiny_model(family).save_pretrained(tmp_path)
    tiny_processor(family).save_pretrained(tmp_path)
    segmenter = Segmenter(tmp_path, device="cpu")
    photo = render_scene(0, (128, 96))[0]
    inputs = segmenter.processor(images=photo, do_resize=False, return_tensors="pt")
    inputs = BatchFeature({"pixel_values": inputs["pixel_values"]})
    expected = segmenter.label_maps([inputs], [(96, 128)])[0]
    assert (label_map_by_tiles(photo, segmenter, SMALL) == expected).mean() > 0.999
    assert label_map_by_tiles(render_scene(0, (200, 150))[0], segmenter, SMALL).shape == (150, 200)


def test_sizes_that_make_no_sense(segmenter):
    for sizes, message in (
        ((100, None), "tile: expected a multiple of 32, 64 or more, got 100"),
        ((32, None), "64 or more"),
        ((None, 20), "overlap: expected a multiple of 32"),
        ((256, 96), "at most a quarter of the tile, 64, got 96"),
    ):
        with pytest.raises(ValueError, match=message):
            TileOptions(*sizes).sizes(segmenter)
    assert TileOptions().sizes(segmenter) == ((1024, 1024), 128)
    assert TileOptions(256).sizes(segmenter) == ((256, 256), 64)


# -- files ------------------------------------------------------------------------------------------------------------


def segment_files(inputs: list[Path], output: Path, segmenter: Segmenter, options: TileOptions = SMALL) -> list[str]:
    jobs, outcomes = plan(inputs, output, kind=LargePictures())
    return [outcome.message for outcome in [*outcomes, *segment_by_tiles(jobs, segmenter, options)]]


def write_tiff(path: Path, bands: np.ndarray, **settings) -> Path:
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype.name, **settings
    ) as dataset:
        dataset.write(bands)
    return path


GROUND = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_200_000, 0.2, 0.2)}


def test_a_photo(segmenter, tmp_path):
    """Label map and shares of its own size, the overlay as large; turned by its EXIF orientation."""
    photo = render_scene(0, (300, 200))[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.png", exif=exif)
    segment_files([tmp_path / "a.png"], tmp_path / "out", segmenter)
    label_map = Image.open(tmp_path / "out" / "a_labels.png")
    assert label_map.size == (200, 300) and label_map.mode == "P"
    expected = label_map_by_tiles(photo.transpose(Image.Transpose.ROTATE_270), segmenter, SMALL)
    assert (np.asarray(label_map) == expected).all()
    assert tuple(label_map.getpalette()[:3]) == tuple(segmenter.palette[0])
    said = json.loads((tmp_path / "out" / "a_classes.json").read_text())
    assert (said["width"], said["height"]) == (200, 300)
    assert {each["id"]: each["pixels"] for each in said["classes"]} == {
        int(index): int(number) for index, number in zip(*np.unique(expected, return_counts=True))
    }
    assert sum(each["share"] for each in said["classes"]) == pytest.approx(1, abs=1e-5)
    assert Image.open(tmp_path / "out" / "a_overlay.png").size[0] == 300  # its legend is that wide


def test_a_geotiff(segmenter, tmp_path):
    """Where it lies, what has no data, and the order of its bands are kept."""
    pixels = np.moveaxis(np.asarray(render_scene(0, (420, 300))[0]), -1, 0)
    has_data = np.ones((300, 420), np.uint8) * 255
    has_data[:, :140] = 0
    bands = np.concatenate([pixels, has_data[None]])
    write_tiff(
        tmp_path / "map.tif", bands, photometric="RGB", alpha="yes", tiled=True, blockxsize=64, blockysize=64, **GROUND
    )
    assert segment_files([tmp_path], tmp_path / "out", segmenter) == [str(tmp_path / "out" / "map_labels.tif")]
    with rasterio.open(tmp_path / "out" / "map_labels.tif") as dataset:
        assert (dataset.crs.to_epsg(), dataset.transform) == (32633, GROUND["transform"])
        assert dataset.profile["tiled"] and dataset.block_shapes == [(256, 256)] and dataset.nodata == 255
        label_map = dataset.read(1)
        assert dataset.colormap(1)[0][:3] == tuple(segmenter.palette[0])
    expected = label_map_by_tiles(pixels, segmenter, SMALL)
    assert (label_map[:, :140] == 255).all()
    assert (label_map == expected)[:, 300:].all()  # where no tile is without data
    shares = json.loads((tmp_path / "out" / "map_classes.json").read_text())["classes"]
    assert sum(each["pixels"] for each in shares) == 300 * 280
    jobs, outcomes = plan([tmp_path], tmp_path / "out", kind=LargePictures())
    assert not jobs and outcomes[0].status == "kept"


def test_other_kinds_of_tiff(segmenter, tmp_path):
    """Gray, 16 bits, a palette, and points on the ground."""
    scene = render_scene(0, (200, 150))[0]
    pixels = np.moveaxis(np.asarray(scene), -1, 0)
    points = [GroundControlPoint(row, column, 10 + column, 50 - row) for row, column in ((0, 0), (0, 199), (149, 0))]
    gray = np.asarray(scene.convert("L"))
    indexed = scene.quantize(16)
    kinds = {
        "gray": (write_tiff(tmp_path / "gray.tif", gray[None]), gray),
        "deep": (write_tiff(tmp_path / "deep.tif", pixels.astype(np.uint16) * 256 + 7), pixels),
        "points": (write_tiff(tmp_path / "points.tif", pixels, crs="EPSG:4326", gcps=points), pixels),
    }
    indexed.save(tmp_path / "indexed.tif")
    kinds["indexed"] = (tmp_path / "indexed.tif", np.moveaxis(np.asarray(indexed.convert("RGB")), -1, 0))
    for name, (path, same) in kinds.items():
        segment_files([path], tmp_path / "out", segmenter)
        with rasterio.open(tmp_path / "out" / f"{name}_labels.tif") as dataset:
            assert (dataset.read(1) == label_map_by_tiles(same, segmenter, SMALL)).all(), name
            assert len(dataset.gcps[0]) == (3 if name == "points" else 0)
            assert dataset.nodata is None


def test_larger_than_pillow_decodes(segmenter, tmp_path, monkeypatch):
    """Its limit stays in force where a picture would be decoded whole: this one is read by rows."""
    photo = render_scene(0, (300, 200))[0]
    photo.save(tmp_path / "a.png")
    segment_files([tmp_path / "a.png"], tmp_path / "whole", segmenter)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    segment_files([tmp_path / "a.png"], tmp_path / "rows", segmenter)
    monkeypatch.undo()
    for name in ("a_labels.png", "a_overlay.png"):
        one, other = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("whole", "rows"))
        assert (one == other).all()


def test_without_rasterio(segmenter, tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", np.zeros((3, 40, 40), np.uint8))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    (message,) = segment_files([tmp_path / "a.tif"], tmp_path / "out", segmenter)
    assert 'pip install "offseg-hf[geo]"' in message
    assert os.listdir(tmp_path / "out") == []


def test_many_classes_in_a_png(tmp_path):
    """Of 16 bits, as the label maps of photos."""
    classes = Classes([f"class {index}" for index in range(300)], [(0, 0, 0)] * 300)
    label_map = np.random.default_rng(0).integers(0, 300, (50, 33)).astype(np.uint16)
    picture = ArrayPicture(np.zeros((3, 50, 33), np.uint8))
    with label_map_writer(tmp_path / "a.png", picture, classes) as writer:
        writer.write(label_map[:20])
        writer.write(label_map[20:])
    assert (np.asarray(Image.open(tmp_path / "a.png")) == label_map).all()


def test_nothing_half_written(segmenter, tmp_path):
    """A picture that breaks off, and an interruption, leave what was there."""
    render_scene(0, (300, 400))[0].save(tmp_path / "a.png")
    write_tiff(tmp_path / "b.tif", np.ones((3, 600, 400), np.uint8), tiled=False, compress="deflate")
    content = (tmp_path / "b.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content[: len(content) // 2])
    (message,) = segment_files([tmp_path / "b.tif"], tmp_path / "out", segmenter)
    assert "written" not in message and os.listdir(tmp_path / "out") == []

    def interrupt(job, rows, height):
        assert 0 < rows < height == 400
        raise KeyboardInterrupt

    jobs, _ = plan([tmp_path / "a.png"], tmp_path / "out", kind=LargePictures())
    with pytest.raises(KeyboardInterrupt):
        list(segment_by_tiles(jobs, segmenter, SMALL, interrupt))
    assert os.listdir(tmp_path / "out") == []


def test_the_network_sees_a_picture_from_top_to_bottom(segmenter, tmp_path):
    """Every row is read once."""
    photo, read = render_scene(0, (300, 700))[0], []

    class Told(ArrayPicture):
        def read(self, begin, end):
            read.append((begin, end))
            return super().read(begin, end)

    strips = list(label_strips(Told.of(photo), segmenter, SMALL))
    assert read[0][0] == 0 and read[-1][1] == 700 and all(one[1] == other[0] for one, other in pairwise(read))
    assert max(end - begin for begin, end in read) <= 128
    assert sum(map(len, strips)) == 700 and max(map(len, strips)) <= 128


# -- the command ------------------------------------------------------------------------------------------------------


def test_command(folder, tmp_path):
    write_tiff(tmp_path / "map.tif", np.moveaxis(np.asarray(render_scene(0, (200, 150))[0]), -1, 0), **GROUND)
    arguments = ["segment", tmp_path / "map.tif", "--model", folder, "--output", tmp_path / "out"]
    result = offseg(*arguments, "--native", "--tile", "128", "--overlap", "0")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path / "out")) == ["map_classes.json", "map_labels.tif", "map_overlay.png"]
    for wrong, message in (
        (["--tile", "128"], "--tile is for photos at their own resolution: pass --native too"),
        (["--native", "--format", "dataset"], "--native writes pictures"),
        (["--native", "--tile", "100"], "tile: expected a multiple of 32"),
    ):
        assert_one_line(offseg(*arguments, "--overwrite", *wrong), message)


@pytest.mark.slow
def test_an_exported_model(folder, segmenter, tmp_path):
    """Its tiles are of its one size, 64, and it gives what the model gives through these."""
    export_model(folder, tmp_path / "exported")
    exported = Segmenter(tmp_path / "exported", device="cpu")
    with pytest.raises(ValueError, match="exported for images of 64 x 64"):
        TileOptions(tile=128).sizes(exported)
    for sides in ((300, 200), (50, 40)):
        photo = render_scene(0, sides)[0]
        expected = label_map_by_tiles(photo, segmenter, TileOptions(64, 0))
        assert (label_map_by_tiles(photo, exported) == expected).mean() > 0.999


@pytest.mark.slow
def test_an_exported_model_of_any_size(folder, segmenter, tmp_path):
    """Its tiles are those of the model."""
    export_model(folder, tmp_path / "exported", options=ExportOptions(dynamic=True))
    exported, photo = Segmenter(tmp_path / "exported", device="cpu"), render_scene(0, (300, 200))[0]
    assert TileOptions().sizes(exported) == ((1024, 1024), 128)
    for options in (SMALL, TileOptions(tile=128, overlap=32, batch_size=2)):
        same = label_map_by_tiles(photo, exported, options) == label_map_by_tiles(photo, segmenter, options)
        assert same.mean() > 0.999


SCRIPT = """
import json, sys, time
from pathlib import Path
import rasterio
from offseg_hf.inference.files import plan
from offseg_hf.inference.outputs import LargePictures
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.inference.tiles import segment_by_tiles

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

model, picture, output = sys.argv[1:]
segmenter, (jobs, _) = Segmenter(model, "cpu"), plan([picture], Path(output), kind=LargePictures())
before, cpu = peak(), time.process_time()
(outcome,) = segment_by_tiles(jobs, segmenter)
print(json.dumps({"status": outcome.status, "megabytes": peak() - before, "seconds": time.process_time() - cpu}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the peak of memory")
def test_two_hundred_megapixels(folder, tmp_path):
    """A picture of 20,000 x 10,000 pixels is 600 MB, and its scores of 10 classes 8 GB: less than 1 GB is needed."""
    tile = np.moveaxis(np.asarray(render_scene(0, (1000, 500))[0]), -1, 0)
    settings = {"width": 20_000, "height": 10_000, "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    with rasterio.open(
        tmp_path / "large.tif", "w", driver="GTiff", photometric="RGB", **GROUND, **settings
    ) as dataset:
        for top in range(0, 10_000, 500):
            rows = np.tile(np.roll(tile, top // 20, axis=2), (1, 1, 20))
            dataset.write(rows, window=((top, top + 500), (0, 20_000)))
    result = json.loads(run_python(SCRIPT, folder, tmp_path / "large.tif", tmp_path / "out").stdout)
    print(result)
    assert result["status"] == "written" and result["megabytes"] < 1000
    with rasterio.open(tmp_path / "out" / "large_labels.tif") as dataset:
        assert (dataset.height, dataset.width) == (10_000, 20_000)
        assert dataset.read(1, window=((9_000, 10_000), (19_000, 20_000))).max() < 10
