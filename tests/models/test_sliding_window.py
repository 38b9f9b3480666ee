"""Sliding window: where the windows lie, and that averaged logits equal the official loop, written plainly here."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from offseg_hf.models.image_operations import sliding_windows
from offseg_hf.models.modeling_utils import sliding_window_logits
from tests.comparison import assert_same_outputs


NUM_LABELS = 5


def official_windows(height, width, crop, stride):
    """The boxes of the official loop, one by one (HVision-NKU/OffSeg @ 1414f6d, EncoderDecoder.slide_inference)."""
    boxes = []
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            boxes.append([max(bottom - crop, 0), max(right - crop, 0), bottom, right])
    return boxes


def official_logits(predict, pixel_values, boxes, num_labels):
    """What the official loop computes, for one image after the other; area under no window is 0."""
    batch, _, height, width = pixel_values.shape
    total = pixel_values.new_zeros(batch, num_labels, height, width)
    count = pixel_values.new_zeros(batch, 1, height, width)
    for i in range(batch):
        for top, left, bottom, right in boxes[i]:
            logits = predict(pixel_values[i : i + 1, :, top:bottom, left:right])
            total[i] += F.pad(
                F.interpolate(logits, size=(bottom - top, right - left), mode="bilinear", align_corners=False)[0],
                (left, width - right, top, height - bottom),
            )
            count[i, :, top:bottom, left:right] += 1
    return torch.where(count > 0, total / count, 0.0)


class Predict:
    """A small network, of stride 4, whose answer depends on the whole crop; it remembers what it was asked."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(NUM_LABELS, 3, 3, 3, generator=generator)
        self.calls = []

    def __call__(self, crops):
        self.calls.append(tuple(crops.shape))
        logits = F.conv2d(crops, self.weight.to(crops.dtype), stride=4, padding=1)
        return logits + crops.mean(dim=(1, 2, 3), keepdim=True)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 683, [[0, 0, 512, 512], [0, 171, 512, 683]]),
        (512, 512, [[0, 0, 512, 512]]),
        (512, 992, [[0, 0, 512, 512], [0, 480, 512, 992]]),
        (512, 993, [[0, 0, 512, 512], [0, 480, 512, 992], [0, 481, 512, 993]]),
        (300, 600, [[0, 0, 300, 512], [0, 88, 300, 600]]),
        (1, 1, [[0, 0, 1, 1]]),
    ],
)
def test_windows_of_the_ade20k_protocol(height, width, expected):
    windows = sliding_windows(height, width, 512, 480)
    assert windows.dtype == torch.int64
    assert windows.tolist() == expected


def test_windows_equal_the_official_loop():
    lengths = [1, 2, 6, 7, 8, 9, 12, 13, 20, 23]
    for height, width in itertools.product(lengths, lengths):
        for size, stride in [(7, 7), (7, 5), (7, 1), (8, 6), (1, 1), (30, 20)]:
            windows = sliding_windows(height, width, size, stride)
            assert windows.tolist() == official_windows(height, width, size, stride), (height, width, size, stride)
            covered = torch.zeros(height, width, dtype=torch.bool)
            for top, left, bottom, right in windows.tolist():
                covered[top:bottom, left:right] = True
            assert covered.all()


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_windows_of_nothing(height, width):
    with pytest.raises(ValueError, match=f"at least 1 x 1 pixels, got {height} x {width}"):
        sliding_windows(height, width, 4, 2)


@pytest.mark.parametrize(("size", "stride"), [(4, 5), (4, 0), (0, 0), (4, -1)])
def test_windows_with_gaps(size, stride):
    with pytest.raises(ValueError, match=f"got window_stride={stride} and window_size={size}"):
        sliding_windows(10, 10, size, stride)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (24, 24), (23, 90), (1, 1), (70, 20), (61, 83)])
def test_logits_equal_the_official_loop(height, width):
    pixel_values = images(2, 3, height, width)
    windows = sliding_windows(height, width, 24, 18).expand(2, -1, -1)
    logits = sliding_window_logits(Predict(), pixel_values, windows, NUM_LABELS)
    assert logits.shape == (2, NUM_LABELS, height, width)
    assert logits.dtype == torch.float32
    assert_same_outputs(logits, official_logits(Predict(), pixel_values, windows.tolist(), NUM_LABELS))


def test_one_window_over_the_image_is_the_plain_function():
    pixel_values = images(1, 3, 31, 45)
    logits = sliding_window_logits(Predict(), pixel_values, torch.tensor([[[0, 0, 31, 45]]]), NUM_LABELS)
    expected = F.interpolate(Predict()(pixel_values), size=(31, 45), mode="bilinear", align_corners=False)
    assert_same_outputs(logits, expected)


def test_unequal_images_in_a_padded_batch():
    """Each image gets the logits it gets alone; boxes of zeros are skipped and padding has logits of 0."""
    small, large = images(1, 3, 20, 24), images(1, 3, 37, 50, seed=1)
    pixel_values = torch.zeros(2, 3, 37, 50)
    pixel_values[0, :, :20, :24], pixel_values[1] = small[0], large[0]
    boxes = [sliding_windows(20, 24, 24, 18), sliding_windows(37, 50, 24, 18)]
    windows = torch.zeros(2, len(boxes[1]), 4, dtype=torch.int64)
    windows[0, : len(boxes[0])], windows[1] = boxes[0], boxes[1]

    logits = sliding_window_logits(Predict(), pixel_values, windows, NUM_LABELS)
    alone = [sliding_window_logits(Predict(), x, b[None], NUM_LABELS) for x, b in zip((small, large), boxes)]
    assert_same_outputs((logits[0, :, :20, :24], logits[1]), (alone[0][0], alone[1][0]))
    assert logits[0, :, 20:].eq(0).all() and logits[0, :, :, 24:].eq(0).all()


def test_windows_of_equal_shape_run_together():
    """Those of 256 x 256; of 512 x 512 two take longer together than one after the other."""
    for size, calls in ((256, [(2, 3, 256, 256)]), (512, [(1, 3, 512, 512)] * 2)):
        predict = Predict()
        windows = sliding_windows(size, size * 4 // 3, size, size - 16)[None]
        sliding_window_logits(predict, images(1, 3, size, size * 4 // 3), windows, NUM_LABELS)
        assert predict.calls == calls


def test_batches_are_bounded():
    predict = Predict()
    pixel_values = images(2, 3, 24, 78)
    windows = sliding_windows(24, 78, 24, 18).expand(2, -1, -1)  # 2 images with 4 windows each
    logits = sliding_window_logits(predict, pixel_values, windows, NUM_LABELS, max_pixels=3 * 24 * 24 + 1)
    assert predict.calls == [(3, 3, 24, 24), (3, 3, 24, 24), (2, 3, 24, 24)]
    assert_same_outputs(logits, official_logits(Predict(), pixel_values, windows.tolist(), NUM_LABELS))

    predict = Predict()  # a window is always run, however large
    one_by_one = sliding_window_logits(predict, pixel_values, windows, NUM_LABELS, max_pixels=1)
    assert_same_outputs(one_by_one, logits)
    assert predict.calls == [(1, 3, 24, 24)] * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_are_kept_in_float32_at_least(dtype):
    """The logits of the windows are exact in `dtype`; averaging them must not round them to it."""
    pixel_values = images(1, 3, 24, 60).to(dtype)
    windows = sliding_windows(24, 60, 24, 7)[None]
    logits = sliding_window_logits(Predict(), pixel_values, windows, NUM_LABELS)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    predict = Predict()
    expected = official_logits(
        lambda crops: predict(crops.to(dtype)).to(logits.dtype),
        pixel_values.to(logits.dtype),
        windows.tolist(),
        NUM_LABELS,
    )
    assert_same_outputs(logits, expected)


def test_gradients_reach_the_pixels():
    pixel_values = images(1, 3, 24, 40).double().requires_grad_()
    windows = sliding_windows(24, 40, 24, 16)[None]
    sliding_window_logits(Predict(), pixel_values, windows, NUM_LABELS).square().sum().backward()
    gradient = pixel_values.grad.clone()
    pixel_values.grad = None
    official_logits(Predict(), pixel_values, windows.tolist(), NUM_LABELS).square().sum().backward()
    torch.testing.assert_close(gradient, pixel_values.grad)


def test_pixel_values_stay_as_they_are():
    pixel_values = images(1, 3, 24, 40)
    before = pixel_values.clone()
    sliding_window_logits(lambda crops: crops.mul_(2), pixel_values, sliding_windows(24, 40, 24, 16)[None], 3)
    assert torch.equal(pixel_values, before)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 21, 10),  # below the image
        (0, 0, 10, 31),  # right of it
        (-1, 0, 10, 10),
        (0, -5, 10, 10),
        (10, 0, 5, 10),  # inverted
        (0, 10, 10, 10),  # empty
        (5, 5, 5, 5),
    ],
)
def test_boxes_outside_the_image(box):
    windows = torch.tensor([[[0, 0, 20, 30]], [box]])
    with pytest.raises(ValueError, match=r"inside 20 x 30 .*got \(.*\) for image 1") as error:
        sliding_window_logits(Predict(), images(2, 3, 20, 30), windows, NUM_LABELS)
    assert str(box) in str(error.value)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 1, 4), (1, 1, 3), (1, 1, 4, 1)])
def test_windows_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"expected shape \(1, num_windows, 4\)") as error:
        sliding_window_logits(Predict(), images(1, 3, 20, 30), torch.ones(shape, dtype=torch.int64), NUM_LABELS)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool])
def test_windows_of_a_wrong_dtype(dtype):
    with pytest.raises(ValueError, match=f"expected integers .*got {dtype}"):
        sliding_window_logits(Predict(), images(1, 3, 20, 30), torch.ones(1, 1, 4, dtype=dtype), NUM_LABELS)
