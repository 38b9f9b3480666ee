"""The image processor: OpenCV's resize bit by bit, every kind of image, label maps, batches, and label maps back."""

import base64
import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from transformers import AutoImageProcessor, pipeline
from transformers.testing_utils import CaptureLogger

from offseg_hf import (
    OffSegConfig,
    OffSegForSemanticSegmentation,
    OffSegImageProcessor,
    OffsetMask2FormerImageProcessor,
)
from offseg_hf.models import image_processing_offseg
from offseg_hf.models.image_operations import keep_ratio_size, resize_bilinear, resize_nearest, sliding_windows
from offseg_hf.models.layers import FixedBatchNorm2d
from tests.processes import run_python


# Of the official configurations, in units of 0..255.
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
SIZE = {"shortest_edge": 64, "longest_edge": 256}


def pattern(*shape):
    """uint8 that looks random and needs no generator."""
    i = np.arange(np.prod(shape), dtype=np.int64)
    return ((i * i * 31 + i * 17) // 7 % 256).astype(np.uint8).reshape(shape)


def read(image, **kwargs):
    """What the processor reads, (3, height, width), without resizing and normalizing it."""
    processor = OffSegImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    batch = processor(image, return_tensors="np", **kwargs)
    assert batch.pixel_values.dtype == np.float32
    assert batch.pixel_values.shape[0] == 1
    return batch.pixel_values[0]


def channels_first(array):
    return np.moveaxis(array, -1, 0)


# -- resizing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [  # pattern(*shape) resized by cv2.resize of opencv-python-headless 5.0.0.93 (4.11.0.86 gives the same)
        ((2, 3), [[0, 2, 6, 16, 22], [24, 31, 43, 60, 72], [47, 60, 80, 105, 122]]),
        ((5, 4), [[35, 91], [85, 131], [90, 125]]),
        ((4, 6), [[104, 60, 116], [118, 96, 108]]),  # half of both sides: OpenCV takes the mean of four
        ((4, 6), [[87, 120, 34, 86, 146, 86], [176, 60, 81, 110, 148, 68]]),  # of one side: it does not
        ((1, 4), [[0, 2, 5, 14, 24, 38, 47], [0, 2, 5, 14, 24, 38, 47]]),
        ((3, 1), [[2, 2], [18, 18]]),
    ],
)
def test_bilinear_is_opencvs(shape, expected):
    resized = resize_bilinear(pattern(1, *shape), *np.shape(expected))
    assert resized.dtype == np.uint8
    assert resized[0].tolist() == expected


@pytest.mark.parametrize(
    ("shape", "size", "digest"),
    [  # the first 16 digits of the SHA-256 of cv2.resize(pattern(*shape, 3), ...), same versions
        ((375, 500), (512, 683), "0b0bec7f47cf8a48"),
        ((900, 1200), (512, 683), "30be4792be5eef48"),
        ((1366, 1024), (683, 512), "a253e79834671640"),
        ((1, 5), (102, 512), "5b212e4c70c51229"),
        ((300, 2400), (256, 2048), "ac0414124b2b2b16"),
        ((701, 97), (333, 1000), "7a995dd5fc5cf705"),
    ],
)
def test_bilinear_is_opencvs_on_images(shape, size, digest):
    resized = resize_bilinear(channels_first(pattern(*shape, 3)), *size)
    assert hashlib.sha256(np.moveaxis(resized, 0, -1).tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("shape", "expected"),
    [  # cv2.INTER_NEAREST, same versions
        ((2, 3), [[0, 0, 6, 6, 22], [0, 0, 6, 6, 22], [47, 47, 80, 80, 122]]),
        ((5, 4), [[0, 22], [80, 174], [154, 134]]),
        (
            (7, 3),
            [
                [0, 0, 0, 6, 6, 22, 22],
                [47, 47, 47, 80, 80, 122, 122],
                [124, 124, 124, 211, 211, 50, 50],
                [8, 8, 8, 148, 148, 41, 41],
            ],
        ),
    ],
)
def test_nearest_is_opencvs(shape, expected):
    assert resize_nearest(pattern(*shape), *np.shape(expected)).tolist() == expected


@pytest.mark.parametrize("size", [(9, 20), (17, 5), (3, 2), (12, 14)])
def test_floats_are_resized_as_torch_does_without_antialiasing(size):
    image = pattern(3, 6, 7).astype(np.float32) / 255
    expected = F.interpolate(torch.from_numpy(image)[None], size=size, mode="bilinear", align_corners=False)[0]
    resized = resize_bilinear(image, *size)
    assert resized.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(resized), expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (512, 683)),
        ((512, 683), (512, 683)),
        ((1200, 900), (683, 512)),
        ((300, 2400), (256, 2048)),  # the long edge is the bound
        ((2, 9000), (1, 2048)),  # mmcv would round the height to 0
        ((1, 1), (512, 512)),
        ((333, 500), (512, 769)),
    ],
)
def test_keep_ratio_size(size, expected):
    assert keep_ratio_size(*size, shortest_edge=512, longest_edge=2048) == expected


def test_pixel_values_are_the_official_arithmetic():
    image = pattern(6, 9, 3)
    batch = OffSegImageProcessor(do_resize=False)(image, return_tensors="pt")
    expected = (torch.from_numpy(image).permute(2, 0, 1).float() - MEAN) / STD
    assert batch.pixel_values.dtype == torch.float32
    assert torch.equal(batch.pixel_values[0], expected)

    in_255 = OffSegImageProcessor(
        do_resize=False, do_rescale=False, image_mean=MEAN.flatten().tolist(), image_std=STD.flatten().tolist()
    )
    assert torch.equal(in_255(image, return_tensors="pt").pixel_values[0], expected)


def test_default_protocol():
    image = pattern(375, 500, 3)
    batch = OffSegImageProcessor()(image, return_tensors="pt")
    resized = torch.from_numpy(resize_bilinear(channels_first(image), 512, 683))
    assert torch.equal(batch.pixel_values, ((resized.float() - MEAN) / STD)[None])
    assert batch.windows.dtype == torch.int64
    assert batch.windows.tolist() == [[[0, 0, 512, 512], [0, 171, 512, 683]]]
    assert list(batch) == OffSegImageProcessor.model_input_names


# -- settings --------------------------------------------------------------------------------------


def test_settings_survive_saving(tmp_path):
    settings = {
        "size": {"shortest_edge": 64, "longest_edge": 100},
        "window_size": 48,
        "window_stride": 32,
        "do_reduce_labels": True,
        "image_mean": [0.1, 0.2, 0.3],
    }
    OffSegImageProcessor(**settings).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in settings} == settings

    for backend in (None, "pil", "torchvision"):
        processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(processor) is OffSegImageProcessor
        assert processor.to_dict() == OffSegImageProcessor.from_pretrained(tmp_path).to_dict()
        batch = processor(pattern(60, 70, 3), pattern(60, 70), return_tensors="pt")
        assert batch.pixel_values.shape == (1, 3, 64, 75)
        assert batch.windows.tolist() == sliding_windows(64, 75, 48, 32)[None].tolist()


def test_whole_mode_survives_saving(tmp_path):
    OffSegImageProcessor(window_size=None).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.window_size is None
    assert processor(pattern(375, 500, 3), return_tensors="pt").windows.tolist() == [[[0, 0, 512, 683]]]


def test_settings_can_be_overridden_per_call():
    processor = OffSegImageProcessor()
    image = pattern(60, 80, 3)
    small = processor(
        image, size={"shortest_edge": 30, "longest_edge": 999}, window_size=32, window_stride=8, return_tensors="pt"
    )
    assert small.pixel_values.shape == (1, 3, 30, 40)
    assert small.windows.tolist() == [[[0, 0, 30, 32], [0, 8, 30, 40]]]
    assert processor(image, window_size=None, return_tensors="pt").windows.tolist() == [[[0, 0, 512, 683]]]
    assert processor(image, size=30, return_tensors="pt").pixel_values.shape == (1, 3, 30, 40)
    exact = processor(image, size={"height": 20, "width": 90}, return_tensors="pt")
    assert exact.pixel_values.shape == (1, 3, 20, 90)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 512, 683)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"longest_edge": 512}}, r"size: expected .*got \{'longest_edge': 512\}"),
        ({"window_size": 32, "window_stride": 33}, "got window_stride=33 and window_size=32"),
        ({"window_stride": 0}, "got window_stride=0 and window_size=512"),
        ({"window_stride": None}, "got window_stride=None and window_size=512"),
        ({"resample": 3}, "resample: expected BILINEAR"),
        ({"do_center_crop": True, "crop_size": 8}, "do_center_crop: not supported"),
        ({"do_center_crop": True}, "do_center_crop: not supported"),
        ({"data_format": "channels_last"}, "data_format: expected"),
        ({"image_mean": [0.5, 0.5]}, "for 3 channels, got 2 and 3 values"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        OffSegImageProcessor()(pattern(8, 8, 3), **settings)
    with pytest.raises(ValueError, match=message):
        OffSegImageProcessor(**settings)(pattern(8, 8, 3))


def test_remote_code(tmp_path):
    """Saved with its code, it loads where offseg_hf cannot be imported, without a question on stdin."""
    OffSegImageProcessor(window_size=None).save_pretrained(tmp_path)
    np.save(tmp_path / "image.npy", pattern(40, 30, 3))
    script = (
        "import sys; sys.modules['offseg_hf'] = None\n"
        "import numpy as np\n"
        "from transformers import AutoImageProcessor\n"
        "for backend in (None, 'pil', 'torchvision'):\n"
        "    processor = AutoImageProcessor.from_pretrained('.', trust_remote_code=True, backend=backend)\n"
        "    np.save('out.npy', processor(np.load('image.npy'), return_tensors='np').pixel_values)\n"
        "processor.save_pretrained('again')\n"
    )
    run_python(script, cwd=tmp_path)
    expected = OffSegImageProcessor()(pattern(40, 30, 3), return_tensors="np").pixel_values
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    again = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert again == json.loads((tmp_path / "preprocessor_config.json").read_text())


# -- images ----------------------------------------------------------------------------------------

RGB = pattern(5, 7, 3)
GRAY = pattern(5, 7)
EXPECTED_RGB = channels_first(RGB)
EXPECTED_GRAY = np.stack([GRAY] * 3)


def with_alpha(image, mode):
    image = image.convert(mode)
    image.putalpha(Image.fromarray(pattern(5, 7)[::-1].copy()))
    return image


def palette_image(transparency=None):
    image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 4).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


PALETTE_COLORS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])
EXPECTED_PALETTE = channels_first(PALETTE_COLORS[np.arange(35).reshape(5, 7) % 4])
WIDE = (pattern(5, 7).astype(np.uint16) << 8) + pattern(7, 5).T  # 16 bits; the upper 8 count
BLACK_AND_WHITE = np.where(GRAY > 127, 255, 0)
PIL_IMAGES = {
    "RGB": (Image.fromarray(RGB), EXPECTED_RGB),
    "RGBA": (with_alpha(Image.fromarray(RGB), "RGBA"), EXPECTED_RGB),
    "RGBX": (Image.fromarray(RGB).convert("RGBX"), EXPECTED_RGB),
    "L": (Image.fromarray(GRAY), EXPECTED_GRAY),
    "LA": (with_alpha(Image.fromarray(GRAY), "LA"), EXPECTED_GRAY),
    "1": (Image.fromarray(GRAY > 127), np.stack([BLACK_AND_WHITE] * 3)),
    "P": (palette_image(), EXPECTED_PALETTE),
    "P with a transparent index": (palette_image(transparency=1), EXPECTED_PALETTE),
    "P with transparencies": (palette_image(transparency=bytes([0, 9, 99, 255])), EXPECTED_PALETTE),
    "PA": (with_alpha(palette_image(), "PA"), EXPECTED_PALETTE),
    "I;16": (Image.fromarray(WIDE), EXPECTED_GRAY),
    "I;16B": (Image.frombytes("I;16B", (7, 5), WIDE.astype(">u2").tobytes()), EXPECTED_GRAY),
    "I": (Image.fromarray(WIDE.astype(np.int32)), EXPECTED_GRAY),
    "F": (Image.fromarray(GRAY + np.float32(0.25)), EXPECTED_GRAY + np.float32(0.25)),
    "CMYK": (Image.fromarray(RGB).convert("CMYK"), EXPECTED_RGB),
    "YCbCr": (Image.fromarray(RGB).convert("YCbCr"), None),
    "HSV": (Image.fromarray(RGB).convert("HSV"), None),
    "La": (with_alpha(Image.fromarray(GRAY), "LA").convert("La"), None),
    "RGBa": (with_alpha(Image.fromarray(RGB), "RGBA").convert("RGBa"), None),
}


@pytest.mark.parametrize("name", PIL_IMAGES)
def test_pil_modes(name):
    image, expected = PIL_IMAGES[name]
    assert image.mode == name.split()[0]
    if expected is None:  # modes with rounding of their own
        expected = channels_first(
            np.asarray(image.convert({"La": "LA", "RGBa": "RGBA"}.get(name, "RGB")).convert("RGB"))
        )
    before = image.tobytes()
    assert np.array_equal(read(image), expected)
    assert image.tobytes() == before


ARRAYS = {
    "HWC": (RGB, EXPECTED_RGB),
    "CHW": (EXPECTED_RGB, EXPECTED_RGB),
    "HW": (GRAY, EXPECTED_GRAY),
    "HW1": (GRAY[..., None], EXPECTED_GRAY),
    "1HW": (GRAY[None], EXPECTED_GRAY),
    "HWC with alpha": (np.dstack([RGB, GRAY]), EXPECTED_RGB),
    "CHW with alpha": (channels_first(np.dstack([RGB, GRAY])), EXPECTED_RGB),
    "bool": (GRAY > 127, np.stack([BLACK_AND_WHITE] * 3)),
    "uint16": (WIDE, EXPECTED_GRAY),
    "int64": (RGB.astype(np.int64), EXPECTED_RGB),
    "int32": (RGB.astype(np.int32), EXPECTED_RGB),
    "float32": (RGB + np.float32(0.25), EXPECTED_RGB + 0.25),
    "float64": (RGB + 0.25, EXPECTED_RGB + 0.25),
    "float16": (RGB.astype(np.float16), EXPECTED_RGB),
    "a view": (np.asfortranarray(RGB[::-1])[::-1], EXPECTED_RGB),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    array, expected = ARRAYS[name]
    array = array.copy()
    before = array.copy()
    assert np.array_equal(read(array), expected)
    assert np.array_equal(array, before)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    assert np.array_equal(read(tensor), expected)
    assert np.array_equal(tensor.numpy(), before)


def test_bfloat16_and_gradients():
    tensor = torch.from_numpy(RGB).bfloat16()
    assert np.array_equal(read(tensor), channels_first(tensor.float().numpy()))
    assert np.array_equal(read(torch.from_numpy(RGB).float().requires_grad_()), EXPECTED_RGB)


def test_read_only_arrays():
    array = RGB.copy()
    array.setflags(write=False)
    assert np.array_equal(read(array), EXPECTED_RGB)


def test_the_result_shares_no_memory_with_the_input():
    array = EXPECTED_RGB.astype(np.float32)
    pixel_values = OffSegImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)(
        array, return_tensors="pt"
    ).pixel_values
    pixel_values.zero_()
    assert np.array_equal(array, EXPECTED_RGB)


def test_ambiguous_channels():
    """As everywhere in transformers: channels come first where both ends could be channels, unless told otherwise."""
    array = pattern(3, 5, 3)
    assert np.array_equal(read(array), array)
    assert np.array_equal(read(array, input_data_format="channels_last"), channels_first(array))
    assert np.array_equal(
        read(pattern(3, 5, 4), input_data_format="channels_last"), channels_first(pattern(3, 5, 4))[:3]
    )


def test_channels_are_kept_on_request():
    array = pattern(4, 5, 6)
    processor = OffSegImageProcessor(do_resize=False, do_convert_rgb=False, image_mean=0.5, image_std=0.25)
    pixel_values = processor(array, return_tensors="np").pixel_values
    np.testing.assert_allclose(pixel_values[0], (array / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    assert processor(Image.fromarray(GRAY), return_tensors="np").pixel_values.shape == (1, 1, 5, 7)


def test_floats_in_0_to_1():
    as_uint8 = OffSegImageProcessor(do_resize=False)(RGB, return_tensors="pt").pixel_values
    as_float = OffSegImageProcessor(do_resize=False, do_rescale=False)(RGB / 255, return_tensors="pt").pixel_values
    torch.testing.assert_close(as_float, as_uint8, atol=2e-6, rtol=1e-5)
    in_255 = OffSegImageProcessor(do_resize=False)(RGB.astype(np.float32), return_tensors="pt").pixel_values
    assert torch.equal(in_255, as_uint8)


def test_floats_in_0_to_1_by_mistake():
    logger = image_processing_offseg.logger
    logger.warning_once.__func__.cache_clear()
    with CaptureLogger(logger) as captured:
        OffSegImageProcessor(do_resize=False)(RGB.astype(np.float32))
    assert captured.out == ""
    with CaptureLogger(logger) as captured:
        OffSegImageProcessor(do_resize=False)(RGB / 255)
    assert "pass `do_rescale=False`" in captured.out


def test_files(tmp_path):
    """As OpenCV reads them: upright, 16 bits cut to 8, without alpha, the first frame."""
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "rotated.png", exif=exif)
    upright = np.rot90(RGB, k=-1)
    for source in (tmp_path / "rotated.png", str(tmp_path / "rotated.png"), Image.open(tmp_path / "rotated.png")):
        assert np.array_equal(read(source), channels_first(upright))

    Image.fromarray(WIDE).save(tmp_path / "wide.png")
    assert np.array_equal(read(tmp_path / "wide.png"), EXPECTED_GRAY)
    palette_image(transparency=1).save(tmp_path / "palette.png")
    assert np.array_equal(read(tmp_path / "palette.png"), EXPECTED_PALETTE)
    frames = [palette_image(), palette_image().transpose(Image.Transpose.ROTATE_180)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    assert Image.open(tmp_path / "animated.gif").n_frames == 2
    assert np.array_equal(read(tmp_path / "animated.gif"), EXPECTED_PALETTE)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "expected at least one image, got none"),
        ([[]], "expected at least one image, got none"),
        (np.zeros((0, 5, 5, 3), np.uint8), "expected at least one image, got none"),
        (np.zeros((0, 5, 3), np.uint8), r"image 0: expected at least one pixel, got an array of shape \(0, 5, 3\)"),
        (Image.new("RGB", (0, 4)), r"image 0: expected at least one pixel, got an array of shape \(4, 0\)"),
        ([RGB, np.full((5, 5, 3), np.nan, np.float32)], "image 1: expected finite pixels, got 75 values that are NaN"),
        (np.full((5, 5, 3), np.inf), "image 0: expected finite pixels"),
        (np.full((5, 5, 3), 1e300), "image 0: expected finite pixels"),
        (Image.fromarray(np.full((5, 5), np.nan, np.float32)), "image 0: expected finite pixels"),
        (np.zeros((2, 2, 5, 5, 3), np.uint8), "image 0: expected an array of 2 or 3 dimensions per image, got shape"),
        ([np.zeros((2, 5, 5, 3), np.uint8)], "image 0: expected an array of 2 or 3 dimensions per image, got shape"),
        (np.zeros(5, np.uint8), r"image 0: expected an array of 2 or 3 dimensions per image, got shape \(5,\)"),
        (np.zeros((5, 6, 2), np.uint8), r"image 0: expected 1, 3 or 4 channels in .* got shape \(5, 6, 2\)"),
        (np.full((5, 5, 3), 256), "image 0: expected int64 pixels from 0 to 255, got values from 256 to 256"),
        (np.full((5, 5, 3), -1), "image 0: expected int64 pixels from 0 to 255, got values from -1 to -1"),
        (Image.fromarray(np.full((5, 5), 65536, np.int32)), r"expected values in 0..65535 in mode I, got .* 65536"),
        (np.zeros((5, 5, 3), np.complex64), "image 0: expected pixels of booleans, integers or floats, got complex64"),
        (np.full((5, 5, 3), "a"), "image 0: expected pixels of booleans, integers or floats, got <U1"),
        ({"bytes": b""}, "expected PIL images, .*, got dict"),
        ([RGB, None], "expected PIL images, .*, got NoneType"),
        ([[1, 2], [3, 4]], "expected PIL images, .*, got int"),
    ],
)
def test_what_is_not_an_image(images, message):
    with pytest.raises(ValueError, match=message) as error:
        OffSegImageProcessor()(images, return_tensors="pt")
    assert "\n" not in str(error.value)


def test_a_channel_format_that_does_not_fit():
    with pytest.raises(ValueError, match="image 0: expected 1, 3 or 4 channels, got 5"):
        read(pattern(5, 6, 3), input_data_format="channels_first")


# -- batches ---------------------------------------------------------------------------------------


def test_ways_to_give_a_batch():
    images = [pattern(6, 8, 3), pattern(6, 8, 3)[::-1].copy()]
    processor = OffSegImageProcessor(size={"shortest_edge": 12}, window_size=None)
    expected = torch.cat([processor(image, return_tensors="pt").pixel_values for image in images])
    for batch in (
        images,
        tuple(images),
        [images[:1], images[1:]],
        np.stack(images),
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        [Image.fromarray(image) for image in images],
        [images[0], torch.from_numpy(images[1])],
    ):
        assert torch.equal(processor(batch, return_tensors="pt").pixel_values, expected)


def test_unequal_images_are_padded():
    processor = OffSegImageProcessor(size={"shortest_edge": 20, "longest_edge": 60}, window_size=20, window_stride=16)
    images = [pattern(10, 15, 3), pattern(30, 10, 3), pattern(10, 10, 3)]
    maps = [pattern(10, 15), pattern(30, 10), pattern(10, 10)]
    batch = processor(images, maps, return_tensors="pt")
    assert batch.pixel_values.shape == (3, 3, 60, 30)
    assert batch.labels.shape == (3, 60, 30)
    assert batch.windows.shape == (3, 4, 4)
    assert batch.image_sizes.tolist() == [[20, 30], [60, 20], [20, 20]]
    for i, (image, label_map) in enumerate(zip(images, maps)):
        alone = processor(image, label_map, return_tensors="pt")
        height, width = alone.pixel_values.shape[2:]
        assert torch.equal(batch.pixel_values[i, :, :height, :width], alone.pixel_values[0])
        assert torch.equal(batch.labels[i, :height, :width], alone.labels[0])
        number = alone.windows.shape[1]
        assert torch.equal(batch.windows[i, :number], alone.windows[0])
        outside = torch.ones(60, 30, dtype=torch.bool)
        outside[:height, :width] = False
        assert batch.pixel_values[i][:, outside].eq(0).all()
        assert batch.labels[i][outside].eq(255).all()
        assert batch.windows[i, number:].eq(0).all()


def test_padding_to_a_divisor():
    """Every image is padded to a multiple before windows are cut, as in the official code; its size is remembered."""
    processor = OffSegImageProcessor(size={"shortest_edge": 20}, window_size=32, window_stride=24, size_divisor=16)
    images = [pattern(20, 30, 3), pattern(50, 20, 3)]
    batch = processor(images, [pattern(20, 30), pattern(50, 20)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 64, 32)
    assert batch.image_sizes.tolist() == [[20, 30], [50, 20]]
    assert batch.windows.tolist() == [
        [[0, 0, 32, 32], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 32, 32], [24, 0, 56, 32], [32, 0, 64, 32]],
    ]
    assert batch.pixel_values[0, :, 20:].eq(0).all() and batch.pixel_values[0, :, :, 30:].eq(0).all()
    assert batch.labels[0, 20:].eq(255).all() and batch.labels[0, :20, :30].eq(torch.from_numpy(pattern(20, 30))).all()

    whole = processor(images[0], window_size=None, return_tensors="pt")
    assert whole.windows.tolist() == [[[0, 0, 32, 32]]]
    unpadded = processor(images[0], window_size=None, do_pad=False, return_tensors="pt")
    assert unpadded.windows.tolist() == [[[0, 0, 20, 30]]] and unpadded.pixel_values.shape == (1, 3, 20, 30)
    with pytest.raises(ValueError, match="pad_size: expected at least 32 x 32 .* got .*24"):
        processor(images[0], pad_size={"height": 24, "width": 64})
    with pytest.raises(ValueError, match="size_divisor: expected at least 1, or None, got 0"):
        processor(images[0], size_divisor=0)


def test_padding_to_a_given_size_and_no_padding():
    processor = OffSegImageProcessor(size={"shortest_edge": 20}, window_size=None)
    batch = processor(pattern(10, 15, 3), pattern(10, 15), pad_size={"height": 32, "width": 40}, return_tensors="pt")
    assert batch.pixel_values.shape == (1, 3, 32, 40)
    assert batch.labels.shape == (1, 32, 40)
    assert batch.windows.tolist() == [[[0, 0, 20, 30]]]
    assert batch.image_sizes.tolist() == [[20, 30]]
    assert batch.labels[0, 20:].eq(255).all() and batch.labels[0, :, 30:].eq(255).all()

    listed = processor([pattern(10, 15, 3), pattern(10, 10, 3)], do_pad=False)
    assert [image.shape for image in listed.pixel_values] == [(3, 20, 30), (3, 20, 20)]


# -- label maps ------------------------------------------------------------------------------------


def read_labels(label_map, **kwargs):
    height, width = label_map.size[::-1] if isinstance(label_map, Image.Image) else tuple(label_map.shape)[-2:]
    processor = OffSegImageProcessor(do_resize=False, **kwargs)
    labels = processor(np.zeros((height, width, 3), np.uint8), label_map, return_tensors="pt").labels
    assert labels.dtype == torch.int64
    assert labels.shape[0] == 1
    return labels[0].numpy()


INDICES = np.arange(35, dtype=np.uint8).reshape(5, 7) % 4


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        (GRAY, GRAY),
        (GRAY.astype(np.int64) + 1000, GRAY.astype(np.int64) + 1000),
        (GRAY.astype(np.uint16) + 300, GRAY.astype(np.int64) + 300),
        (GRAY[None], GRAY),
        (torch.from_numpy(GRAY), GRAY),
        (torch.from_numpy(GRAY.astype(np.int64)), GRAY),
        (GRAY > 127, GRAY > 127),
        (Image.fromarray(GRAY), GRAY),
        (palette_image(), INDICES),
        (palette_image(transparency=1), INDICES),
        (Image.fromarray(GRAY > 127), GRAY > 127),
        (Image.fromarray(WIDE), WIDE),
        (Image.fromarray(WIDE.astype(np.int32)), WIDE),
    ],
)
def test_label_maps_are_indices(label_map, expected):
    assert np.array_equal(read_labels(label_map), expected)


def test_label_maps_in_files(tmp_path):
    palette_image().save(tmp_path / "map.png")
    RGB_file = tmp_path / "image.png"
    Image.fromarray(RGB).save(RGB_file)
    batch = OffSegImageProcessor(do_resize=False)(RGB_file, tmp_path / "map.png", return_tensors="np")
    assert np.array_equal(batch.labels[0], INDICES)


def test_label_maps_with_a_channel_in_a_list():
    maps = [GRAY[..., None], GRAY[None], GRAY]
    labels = OffSegImageProcessor(do_resize=False)([RGB] * 3, maps, return_tensors="np").labels
    assert np.array_equal(labels, np.stack([GRAY] * 3))


def test_label_maps_are_resized_with_their_image():
    processor = OffSegImageProcessor(size={"shortest_edge": 16})
    batch = processor(RGB, GRAY, return_tensors="np")
    assert batch.pixel_values.shape[2:] == (16, 22)
    assert np.array_equal(batch.labels[0], resize_nearest(GRAY, 16, 22))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32, np.uint16])
def test_reduced_labels(dtype):
    label_map = np.array([[0, 1, 2], [150, 254, 255]], dtype=dtype)
    before = label_map.copy()
    assert read_labels(label_map, do_reduce_labels=True).tolist() == [[255, 0, 1], [149, 253, 255]]
    assert np.array_equal(label_map, before)
    assert read_labels(label_map).tolist() == before.tolist()
    assert read_labels(torch.from_numpy(label_map), do_reduce_labels=True).tolist() == [[255, 0, 1], [149, 253, 255]]
    assert np.array_equal(label_map, before)


@pytest.mark.parametrize(
    ("label_maps", "message"),
    [
        (np.zeros((5, 8), np.uint8), r"label map 0: expected 5 x 7 as its image \(height x width\), got 5 x 8"),
        ([GRAY, GRAY], "expected a label map per image, got 2 for 1 images"),
        ([], "expected a label map per image, got 0 for 1 images"),
        (
            Image.fromarray(RGB),
            r"label map 0: expected a label map of one class id per pixel, .*got shape \(5, 7, 3\)",
        ),
        ([RGB], r"label map 0: expected a label map of one class id per pixel, .*got shape \(5, 7, 3\)"),
        (GRAY.astype(np.float32), "label map 0: expected a label map of integers, got float32"),
        ("no such file", "no such file"),
        ([None], "expected PIL images, .*, got NoneType"),
    ],
)
def test_label_maps_that_do_not_fit(label_maps, message):
    with pytest.raises(ValueError, match=message):
        OffSegImageProcessor()(RGB, label_maps, return_tensors="pt")


def test_the_label_map_of_a_rotated_photo_is_upright():
    photo = Image.fromarray(RGB)
    photo.getexif()[0x0112] = 6
    processor = OffSegImageProcessor(do_resize=False)
    labels = processor(photo, np.rot90(GRAY, k=-1), return_tensors="np").labels
    assert np.array_equal(labels[0], np.rot90(GRAY, k=-1))
    with pytest.raises(ValueError, match="expected 7 x 5 as its image .* got 5 x 7"):
        processor(photo, GRAY)


# -- back to label maps ----------------------------------------------------------------------------


def logits_of(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def upsampled(logits, size):
    return F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_post_processing(dtype):
    logits = logits_of(2, 11, 6, 9, dtype=dtype)
    processor = OffSegImageProcessor()
    sizes = [(13, 20), (5, 4)]
    for target_sizes in (sizes, torch.tensor(sizes)):
        maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes)
        assert [m.dtype for m in maps] == [torch.int64] * 2
        for label_map, image_logits, size in zip(maps, logits, sizes):
            assert torch.equal(label_map, upsampled(image_logits, size).argmax(0))
    maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits))
    assert torch.equal(torch.stack(maps), logits.argmax(1))


def test_the_first_of_equal_classes_wins():
    logits = logits_of(1, 11, 6, 9).mul(2).round()  # rounded, so that classes tie
    logits[:, 7] = logits[:, 2]
    (label_map,) = OffSegImageProcessor().post_process_semantic_segmentation(
        SimpleNamespace(logits=logits), [(12, 18)]
    )
    assert torch.equal(label_map, upsampled(logits[0], (12, 18)).argmax(0))


def test_post_processing_with_scores():
    logits = logits_of(2, 4, 6, 9, dtype=torch.float16)
    results = OffSegImageProcessor().post_process_semantic_segmentation(
        SimpleNamespace(logits=logits), [(8, 9), (3, 3)], return_segmentation_scores=True
    )
    for result, image_logits, size in zip(results, logits, [(8, 9), (3, 3)]):
        assert torch.equal(result.segmentation_scores, upsampled(image_logits, size))
        assert torch.equal(result.segmentation, result.segmentation_scores.argmax(0))


def test_post_processing_crops_the_padding():
    """The logits of the padding must not reach the label map, at its border neither."""
    logits = torch.full((2, 3, 40, 30), 1e4)
    logits[0, :, :20, :30] = image_logits = logits_of(3, 20, 30)
    logits[1] = logits_of(3, 40, 30)
    outputs = SimpleNamespace(logits=logits, image_sizes=torch.tensor([[20, 30], [40, 30]]))
    maps = OffSegImageProcessor().post_process_semantic_segmentation(outputs, [(35, 50), (40, 30)])
    assert torch.equal(maps[0], upsampled(image_logits, (35, 50)).argmax(0))
    assert torch.equal(maps[1], logits[1].argmax(0))
    assert [m.shape for m in OffSegImageProcessor().post_process_semantic_segmentation(outputs)] == [
        (20, 30),
        (40, 30),
    ]


def test_post_processing_with_a_wrong_number_of_sizes():
    with pytest.raises(ValueError, match="expected a target size per image, got 1 for 2 images"):
        OffSegImageProcessor().post_process_semantic_segmentation(
            SimpleNamespace(logits=logits_of(2, 3, 4, 4)), [(4, 4)]
        )


# -- the stock pipeline ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = OffSegConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 2, 2],
        num_attention_blocks=1,
        mlp_ratios=[[2], [2], [2, 2], [2, 2]],
        lateral_channels=[32, 32, 32, 32],
        decoder_hidden_size=32,
        image_size=64,
        num_labels=7,
    )
    model = OffSegForSemanticSegmentation(config).eval()
    for module in model.modules():  # as after training: norms that do something, residuals that count
        if isinstance(module, FixedBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def processor():
    return OffSegImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}, window_size=64, window_stride=48)


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def photo(height, width, seed):
    """Colored blobs, so that several classes win somewhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def by_hand(model, processor, image):
    """The label map of one image, with the official loop over windows; the processor only prepares the pixels."""
    pixel_values = processor(image, return_tensors="pt").pixel_values
    _, _, height, width = pixel_values.shape
    total = torch.zeros(1, model.config.num_labels, height, width)
    count = torch.zeros(1, 1, height, width)
    for top, left, bottom, right in sliding_windows(height, width, 64, 48).tolist():
        with torch.no_grad():
            logits = model(pixel_values[:, :, top:bottom, left:right]).logits
        total[:, :, top:bottom, left:right] += upsampled(logits[0], (bottom - top, right - left))
        count[:, :, top:bottom, left:right] += 1
    return upsampled((total / count)[0], image.size[::-1]).argmax(0).numpy()


def label_map_of(segments, size):
    """The pipeline's masks, one per class, as a label map."""
    label_map = np.full(size[::-1], -1)
    for segment in segments:
        mask = np.asarray(segment["mask"]) == 255
        assert (label_map[mask] == -1).all()
        label_map[mask] = int(segment["label"].removeprefix("LABEL_"))
    return label_map


def agreement(got, expected):
    """Share of equal pixels; windows run in batches round differently in the last bit."""
    assert got.shape == expected.shape
    return (got == expected).mean()


def test_pipeline_gives_the_label_map_of_the_official_loop(model, processor, folder):
    segmenter = pipeline("image-segmentation", model=str(folder))
    images = [photo(80, 110, 0), photo(80, 110, 1), photo(150, 60, 2), photo(64, 64, 3)]
    expected = [by_hand(model, processor, image) for image in images]
    assert all(len(np.unique(label_map)) > 2 for label_map in expected)
    assert (expected[0] != expected[1]).mean() > 0.1

    single = label_map_of(segmenter(images[0]), images[0].size)
    assert agreement(single, expected[0]) > 0.999
    for kwargs, chosen in (({}, images), ({"batch_size": 2}, images[:2]), ({"batch_size": 8}, images[:2])):
        results = segmenter(chosen, **kwargs)
        assert len(results) == len(chosen)
        for segments, image, label_map in zip(results, chosen, expected):
            assert agreement(label_map_of(segments, image.size), label_map) > 0.999


def test_pipeline_refuses_unequal_images_in_a_batch(folder):
    segmenter = pipeline("image-segmentation", model=str(folder))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        segmenter([photo(80, 110, 0), photo(150, 60, 2)], batch_size=2)


def test_unequal_images_in_a_batch_by_hand(model, processor):
    """What the pipeline refuses, the processor can: every image gets the label map it gets alone."""
    images = [photo(80, 110, 0), photo(150, 60, 2), photo(64, 64, 3)]
    inputs = processor(images, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    assert torch.equal(outputs.image_sizes, inputs.image_sizes)
    maps = processor.post_process_semantic_segmentation(outputs, [image.size[::-1] for image in images])
    for label_map, image in zip(maps, images):
        assert agreement(label_map.numpy(), by_hand(model, processor, image)) > 0.999


def test_pipeline_reads_files(model, processor, folder, tmp_path):
    image = photo(80, 110, 0)
    exif = Image.Exif()
    exif[0x0112] = 8
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "rotated.png", exif=exif)
    segments = pipeline("image-segmentation", model=str(folder))(str(tmp_path / "rotated.png"))
    assert agreement(label_map_of(segments, image.size), by_hand(model, processor, image)) > 0.999


# -- one reader, and what it says -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder that is served at a URL, with pictures of several kinds, whole and not."""
    folder = tmp_path_factory.mktemp("files")
    ramp = np.add.outer(np.arange(40) * 700, np.arange(60) * 600).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "deep.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    Image.fromarray((ramp // 8192).astype(np.uint8)).save(folder / "labels.png")
    for name in ("photo.png", "labels.png"):
        data = (folder / name).read_bytes()
        (folder / f"broken_{name}").write_bytes(data[: len(data) * 2 // 3])
    (folder / "text.png").write_text("no image")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["deep.png", "photo.png"])
def test_every_way_in_gives_the_same_pixels(files, name):
    folder, url = files
    path = folder / name
    text = base64.b64encode(path.read_bytes()).decode()
    sources = [path, str(path), f"{url}/{name}", text, f"data:image/png;base64,{text}", Image.open(path)]
    processor = OffSegImageProcessor(size=SIZE)
    expected = processor(np.asarray(Image.open(path)), return_tensors="pt").pixel_values
    for source in sources:
        assert torch.equal(processor(source, return_tensors="pt").pixel_values, expected)
    assert expected.max() > expected.min() + 1


def test_label_maps_by_every_way(files):
    folder, url = files
    path = folder / "labels.png"
    processor = OffSegImageProcessor(do_resize=False)
    expected = torch.from_numpy(np.asarray(Image.open(path)).astype(np.int64))[None]
    text = base64.b64encode(path.read_bytes()).decode()
    for source in (path, str(path), f"{url}/labels.png", text, Image.open(path)):
        assert torch.equal(processor(folder / "photo.png", source, return_tensors="pt").labels, expected)


def test_label_maps_are_turned_as_photos_are(files, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(files[0] / "labels.png").save(tmp_path / "labels.png", exif=exif)
    Image.open(files[0] / "photo.png").save(tmp_path / "photo.png", exif=exif)
    inputs = OffSegImageProcessor(do_resize=False)(
        tmp_path / "photo.png", tmp_path / "labels.png", return_tensors="pt"
    )
    assert inputs.labels.shape == (1, 60, 40) and inputs.pixel_values.shape == (1, 3, 60, 40)


@pytest.mark.parametrize("processor_class", [OffSegImageProcessor, OffsetMask2FormerImageProcessor])
def test_what_cannot_be_read_is_named(files, processor_class):
    folder, url = files
    processor, photo = processor_class(size=SIZE), folder / "photo.png"
    broken = folder / "broken_photo.png"
    for images, message in (
        ([photo, photo, broken], r"image 2 \(.*broken_photo.png\): cannot be decoded: "),
        ([photo, Image.open(broken)], r"image 1 \(.*broken_photo.png\): cannot be decoded: "),
        ([photo, f"{url}/nope.png"], r"image 1 \(http.*nope.png\): cannot be fetched: .*404"),
        (["http://127.0.0.1:9/a.png"], r"image 0 \(http.*a.png\): cannot be fetched"),
        ([folder / "text.png"], r"image 0 \(.*text.png\): not an image"),
        ([f"{url}/text.png"], r"image 0 \(.*text.png\): not an image"),
        ([folder / "no.png"], r"image 0 \(.*no.png\): no such file"),
        ([folder], r"image 0 \(.*\): expected the file of an image, got a folder"),
        (["bm8gaW1hZ2U="], r"image 0 \(bm8gaW1hZ2U=\): not an image"),
        ([photo, None], r"image 1: expected PIL images, .* got NoneType"),
        ({"photo": photo}, r"image 0: expected PIL images, .* got dict"),
        ((str(path) for path in [photo]), r"image 0: expected PIL images, .* got generator"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(images)
    for label_map, message in (
        (folder / "broken_labels.png", r"label map 0 \(.*broken_labels.png\): cannot be decoded"),
        (f"{url}/nope.png", r"label map 0 \(.*nope.png\): cannot be fetched: .*404"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(photo, label_map)


@pytest.mark.parametrize("processor_class", [OffSegImageProcessor, OffsetMask2FormerImageProcessor])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size": -5}, "positive integers"),
        ({"size": {"shortest_edge": 64, "longest_edge": -5}}, "positive integers"),
        ({"size": {"height": -3, "width": 4}}, "positive integers"),
        ({"size": {"max_height": 3, "max_width": 4}}, "size: expected"),
        ({"crop_size": 32}, "crop_size: has no effect here"),
        ({"disable_grouping": True}, "disable_grouping: has no effect here"),
        ({"windw_size": 64}, "has no setting 'windw_size': is 'window_size' meant"),
        ({"zzz": 64}, "has no setting 'zzz': expected one of "),
    ],
)
def test_settings_without_effect_are_refused(processor_class, settings, message):
    """When the processor is made, and when it is called."""
    with pytest.raises(ValueError, match=message):
        processor_class(**settings)
    with pytest.raises(ValueError, match=message):
        processor_class()(photo(8, 8, 0), **settings)


def test_saved_settings_load(tmp_path):
    processor = OffSegImageProcessor(window_size=64, window_stride=48)
    processor.of_a_user = 1
    processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"of_a_newer_version": 2}))
    for load in (OffSegImageProcessor, AutoImageProcessor):
        loaded = load.from_pretrained(tmp_path, window_stride=40)
        assert (loaded.window_size, loaded.window_stride, loaded.of_a_newer_version) == (64, 40, 2)
        with pytest.raises(ValueError, match="is 'window_size' meant"):
            load.from_pretrained(tmp_path, windw_size=32)


def test_device():
    inputs = OffSegImageProcessor(size=SIZE)(photo(40, 60, 0), return_tensors="pt", device="meta")
    assert {value.device.type for value in inputs.values()} == {"meta"}
    with pytest.raises(ValueError, match='device: only tensors have one, pass return_tensors="pt"'):
        OffSegImageProcessor(size=SIZE)(photo(40, 60, 0), device="meta")
    label_map = np.zeros((40, 60), dtype=np.uint8)
    processor = OffsetMask2FormerImageProcessor(size=SIZE)
    inputs = processor(photo(40, 60, 0), label_map, return_tensors="pt", device="meta")
    assert inputs.pixel_values.device.type == inputs.mask_labels[0].device.type == "meta"


@pytest.mark.parametrize(
    "target_sizes, message",
    [
        ((30, 40), r"target_sizes: expected \(height, width\) for every image, .* got \(30, 40\)"),
        ([(30, 40, 3), (30, 40)], "target_sizes: expected"),
        ([(30, 40)], "expected a target size per image, got 1 for 2"),
        ([(0, 4), (3, 3)], r"at least 1 x 1 pixels, got \(0, 4\)"),
        ([(3, -4), (3, 3)], r"at least 1 x 1 pixels, got \(3, -4\)"),
    ],
)
def test_wrong_target_sizes(target_sizes, message):
    semantic = SimpleNamespace(logits=torch.rand(2, 5, 8, 8))
    masks = SimpleNamespace(class_queries_logits=torch.rand(2, 3, 6), masks_queries_logits=torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=message):
        OffSegImageProcessor().post_process_semantic_segmentation(semantic, target_sizes)
    processor = OffsetMask2FormerImageProcessor()
    for kind in ("semantic", "instance", "panoptic"):
        with pytest.raises(ValueError, match=message):
            getattr(processor, f"post_process_{kind}_segmentation")(masks, target_sizes=target_sizes)
    with pytest.raises(ValueError, match="expected the outputs of the model, which have `logits`, got tuple"):
        OffSegImageProcessor().post_process_semantic_segmentation((semantic.logits,))


@torch.no_grad()
def test_padding_does_not_get_into_label_maps(model, processor):
    """The plain network on a padded batch does not know where the images are: that is said, not stretched."""
    images = [photo(80, 110, 0), photo(150, 60, 2)]
    sizes = [image.size[::-1] for image in images]
    pixel_values = processor(images, return_tensors="pt").pixel_values
    with pytest.raises(ValueError, match=r"these images were padded to .*: call it as model\(\*\*inputs\)"):
        processor.post_process_semantic_segmentation(model(pixel_values), sizes)
    # Images of one shape, and maps of any other size, are not padded.
    pixel_values = processor(images[:1] * 2, return_tensors="pt").pixel_values
    for target_sizes in (sizes[:1] * 2, [(50, 50), (20, 70)]):
        maps = processor.post_process_semantic_segmentation(model(pixel_values), target_sizes)
        assert [tuple(label_map.shape) for label_map in maps] == target_sizes

    masks = SimpleNamespace(class_queries_logits=torch.rand(1, 3, 6), masks_queries_logits=torch.rand(1, 3, 16, 24))
    with pytest.raises(ValueError, match="padded to 64 x 96"):
        OffsetMask2FormerImageProcessor(size=SIZE).post_process_semantic_segmentation(masks, [(80, 110)])


def test_the_size_of_a_photo_that_lies_on_its_side_is_told():
    """As code gives it that was written for photos without an EXIF orientation; squeezed maps would come of it."""
    processor = OffSegImageProcessor(size={"shortest_edge": 32, "longest_edge": 128})
    photo = Image.new("RGB", (60, 40))
    photo.getexif()[ExifTags.Base.Orientation] = 6
    inputs = processor(photo, return_tensors="pt")
    outputs = SimpleNamespace(logits=torch.rand(1, 3, *inputs.pixel_values.shape[2:]), image_sizes=inputs.image_sizes)
    with pytest.raises(ValueError, match="got 40 x 60 .* that is 60 x 40 upright, as its EXIF orientation says"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(photo.height, photo.width)])
    for size in ((60, 40), (30, 20), (30, 30), (7, 90)):  # others may be meant
        (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
        assert label_map.shape == size
