"""The image processor of Mask2Former with offset learning: masks for training, and maps, instances and panoptic
segments from masks, by itself, through the stock pipeline and as code on the Hub."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ImageSegmentationPipeline, pipeline
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from offseg_hf import OffsetMask2FormerImageProcessor
from tests.comparison import assert_same_outputs, sure_pixels
from tests.models.test_modeling_offset_mask2former import small_model
from tests.processes import run_python


LABELS = ("sky", "tree", "road")


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def processor(**settings) -> OffsetMask2FormerImageProcessor:
    return OffsetMask2FormerImageProcessor(**({"size": {"shortest_edge": 64, "longest_edge": 256}} | settings))


def test_inputs():
    """Padded to a multiple of 32, and to each other."""
    inputs = processor()([photo(60, 80), photo(40, 60)], return_tensors="pt")
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "pixel_values": (2, 3, 64, 96),
        "image_sizes": (2, 2),
    }
    assert inputs.image_sizes.tolist() == [[64, 85], [64, 96]]
    assert inputs.pixel_values[0, :, :, 85:].abs().max() == 0
    assert processor(do_resize=False, size_divisor=None)(photo(50, 70)).pixel_values[0].shape == (3, 50, 70)


def test_masks_of_classes():
    """One mask for each class in the label map; 255 and the padding are in none."""
    label_maps = np.random.default_rng(0).choice([0, 3, 7, 255], (2, 50, 70)).astype(np.uint8)
    label_maps[1] = 255
    inputs = processor(do_resize=False)([photo(50, 70)] * 2, list(label_maps), return_tensors="pt")
    assert "labels" not in inputs
    assert [classes.tolist() for classes in inputs.class_labels] == [[0, 3, 7], []]
    assert [masks.shape for masks in inputs.mask_labels] == [(3, 64, 96), (0, 64, 96)]
    assert inputs.mask_labels[0].dtype == torch.float32
    for mask, label in zip(inputs.mask_labels[0], (0, 3, 7)):
        assert np.array_equal(mask[:50, :70] == 1, label_maps[0] == label)
        assert mask.sum() == (label_maps[0] == label).sum()

    arrays = processor(do_resize=False)([photo(50, 70)] * 2, list(label_maps))
    for name in ("mask_labels", "class_labels"):
        assert all(np.array_equal(a, b) for a, b in zip(arrays[name], inputs[name], strict=True))


@pytest.mark.parametrize("ids", [None, {1: 5, 2: 5, 9: 2}])
def test_masks_equal_those_of_mask2former(ids):
    """ADE20K's labels, where 0 is no class, and instances of its classes."""
    label_map = np.random.default_rng(0).choice([0, 1, 2, 9], (64, 96)).astype(np.uint8)
    settings = {"do_resize": False, "do_reduce_labels": True}
    inputs = processor(**settings)(photo(64, 96), label_map, instance_id_to_semantic_id=ids)
    stock = Mask2FormerImageProcessorPil(**settings, ignore_index=255)
    expected = stock(photo(64, 96), label_map, instance_id_to_semantic_id=ids)
    assert np.array_equal(inputs.class_labels[0], expected.class_labels[0])
    assert np.array_equal(inputs.mask_labels[0], expected.mask_labels[0])
    assert inputs.class_labels[0].tolist() == ([0, 1, 8] if ids is None else [4, 4, 1])


def test_ids_of_instances():
    """Any number is an id, 255 and those beyond too; a mapping for all images, or one for each."""
    label_map = np.zeros((50, 70), dtype=np.int32)
    label_map[:10], label_map[10:20], label_map[20:30] = 255, 256, 1000
    ids = {0: 4, 255: 2, 256: 2, 1000: 255}
    arguments = {"images": [photo(50, 70)] * 2, "segmentation_maps": [label_map] * 2}
    prepare = processor(do_resize=False)
    inputs = prepare(**arguments, instance_id_to_semantic_id=ids)
    assert inputs.class_labels[0].tolist() == [4, 2, 2]  # 255 is no class
    assert [np.unique(np.nonzero(mask)[0]).tolist()[::9] for mask in inputs.mask_labels[0]] == [
        [30, 39, 48],
        [0, 9],
        [10, 19],
    ]
    inputs = prepare(**arguments, instance_id_to_semantic_id=[ids, ids | {0: 1}])
    assert [classes.tolist() for classes in inputs.class_labels] == [[4, 2, 2], [1, 2, 2]]

    with pytest.raises(ValueError, match=r"label map 0: expected ids that instance_id_to_semantic_id has, got \[1000"):
        prepare(**arguments, instance_id_to_semantic_id={0: 4, 255: 2, 256: 2})
    with pytest.raises(ValueError, match=r"expected one for all, or one per image \(2\), got 3"):
        prepare(**arguments, instance_id_to_semantic_id=[ids] * 3)


def test_windows_are_refused():
    with pytest.raises(ValueError, match="window_size: expected None, as the model sees images whole, got 32"):
        processor()(photo(60, 80), window_size=32)


def random_outputs(image_sizes: list[list[int]] | None = None, num_labels: int = 5) -> SimpleNamespace:
    """Two images, 7 queries, masks of 16 x 24 for an input of 64 x 96."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 7, 4, 6, generator=generator)
    return SimpleNamespace(
        class_queries_logits=3 * torch.randn(2, 7, num_labels + 1, generator=generator),
        masks_queries_logits=5 * torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic"),
        image_sizes=None if image_sizes is None else torch.tensor(image_sizes),
    )


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixel by pixel in float64; pixels are squares, and the border repeats."""
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * image.shape[0] / height - 0.5, 0)
            x = max((j + 0.5) * image.shape[1] / width - 0.5, 0)
            top, left = int(y), int(x)
            down, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            lower = image[down, left] * (left + 1 - x) + image[down, right] * (x - left)
            result[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return result


def test_semantic_scores_equal_the_plain_loop():
    outputs = random_outputs([[64, 85], [33, 96]])
    target_sizes = [(40, 50), (33, 96)]
    results = processor().post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True)
    for index, (result, (height, width)) in enumerate(zip(results, target_sizes, strict=True)):
        image_height, image_width = outputs.image_sizes[index].tolist()
        expected = np.zeros((5, image_height, image_width))
        for class_logits, mask_logits in zip(
            outputs.class_queries_logits[index].double().numpy(), outputs.masks_queries_logits[index].double().numpy()
        ):
            probabilities = np.exp(class_logits) / np.exp(class_logits).sum()
            mask = 1 / (1 + np.exp(-resized(mask_logits, 64, 96)[:image_height, :image_width]))
            for label in range(5):
                expected[label] += probabilities[label] * mask
        expected = np.stack([resized(scores, height, width) for scores in expected])
        np.testing.assert_allclose(result["segmentation_scores"], expected, atol=1e-5)
        assert np.array_equal(result["segmentation"], result["segmentation_scores"].argmax(0))
        assert len(result["segmentation"].unique()) > 2


@pytest.mark.parametrize("target_sizes", [None, [(30, 40), (200, 100)], torch.tensor([[30, 40], [200, 100]])])
def test_label_maps_are_those_of_the_scores(target_sizes):
    outputs = random_outputs([[64, 85], [33, 96]])
    expected = processor().post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True)
    for label_map, result in zip(
        processor().post_process_semantic_segmentation(outputs, target_sizes), expected, strict=True
    ):
        assert label_map.dtype == torch.int64
        sure = sure_pixels(result["segmentation_scores"])
        assert torch.equal(label_map[sure], result["segmentation"][sure]) and sure.float().mean() > 0.99
    if target_sizes is None:
        assert label_map.shape == (33, 96)


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_without_padding_results_are_those_of_mask2former(kind):
    outputs, sizes = random_outputs(), [(40, 50), (100, 80)]
    find = getattr(processor(), f"post_process_{kind}_segmentation")
    stock = getattr(Mask2FormerImageProcessorPil(), f"post_process_{kind}_segmentation")
    if kind == "instance":
        options = [{}, {"return_coco_annotation": True}, {"return_binary_maps": True}, {"threshold": 0.999}]
    else:
        options = [{}, {"label_ids_to_fuse": {0, 1, 2, 3, 4}}, {"mask_threshold": 0.7}, {"threshold": 0.9999}]
    for kwargs in options:
        kwargs = {"threshold": 0.1, "overlap_mask_area_threshold": 0.1} | kwargs
        for actual, expected in zip(
            find(outputs, target_sizes=sizes, **kwargs), stock(outputs, target_sizes=sizes, **kwargs), strict=True
        ):
            assert actual["segments_info"] == expected["segments_info"]
            assert (len(actual["segments_info"]) > 1) == (kwargs["threshold"] == 0.1)
            if isinstance(expected["segmentation"], list):
                assert actual["segmentation"] == expected["segmentation"]
            else:
                assert torch.equal(actual["segmentation"], expected["segmentation"])


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
@pytest.mark.parametrize("target_size", [None, (120, 160)])
def test_padding_is_cut_off(kind, target_size):
    """An image that is the upper left quarter of the input, two segments that halve it, and one in the padding."""
    mask_logits = torch.full((1, 3, 32, 32), -20.0)
    mask_logits[0, 0, :, :8] = mask_logits[0, 1, :, 8:16] = mask_logits[0, 2, 16:] = 20
    outputs = SimpleNamespace(
        class_queries_logits=20 * torch.eye(4)[None, :3],
        masks_queries_logits=mask_logits,
        image_sizes=torch.tensor([[60, 64]]),
    )
    (result,) = getattr(processor(), f"post_process_{kind}_segmentation")(
        outputs, target_sizes=None if target_size is None else [target_size]
    )
    height, width = target_size or (60, 64)
    assert result["segmentation"].shape == (height, width)
    is_left = torch.arange(width).expand(height, width) < width // 2
    expected = {0: is_left, 1: ~is_left}
    assert {segment["label_id"] for segment in result["segments_info"]} == expected.keys()
    for segment in result["segments_info"]:
        found = result["segmentation"] == segment["id"]
        assert (found == expected[segment["label_id"]]).float().mean() > 0.98


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_a_target_size_per_image(kind):
    with pytest.raises(ValueError, match="expected a target size per image, got 1 for 2 images"):
        getattr(processor(), f"post_process_{kind}_segmentation")(random_outputs(), target_sizes=[(4, 5)])


def test_round_trip(tmp_path):
    saved = processor(do_reduce_labels=True, size_divisor=16)
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is OffsetMask2FormerImageProcessor
    assert loaded.to_dict() == saved.to_dict()
    inputs = loaded(photo(60, 80))
    assert (loaded.window_size, loaded.size_divisor, "windows" in inputs) == (None, 16, False)


SCRIPT = """
import sys

sys.modules["offseg_hf"] = None  # importing it is an error, also where it is installed
folder = sys.argv[1]

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline

trust = {"trust_remote_code": True}
photo = Image.open(f"{folder}/photo.png")
model = AutoModelForUniversalSegmentation.from_pretrained(folder, **trust)
processor = AutoImageProcessor.from_pretrained(folder, **trust)
segment = pipeline("image-segmentation", model=folder, **trust)
origins = {type(part).__module__ for part in (model, model.config, processor, segment.model, segment.image_processor)}
assert all(origin.startswith("transformers_modules.") for origin in origins), origins
with torch.no_grad():
    masks = model(**processor(photo, return_tensors="pt")).masks_queries_logits
torch.save((segment(photo, subtask="semantic"), segment(photo, threshold=0.3)), f"{folder}/outputs.pt")

# What came from the Hub can be saved, with its code, and loaded again: the model of the pipeline too.
for part in (segment.model, processor):
    part.save_pretrained(f"{folder}/again")
again = AutoModelForUniversalSegmentation.from_pretrained(f"{folder}/again", **trust)
pipeline("image-segmentation", model=f"{folder}/again", **trust)
with torch.no_grad():
    masks_again = again(**processor(photo, return_tensors="pt")).masks_queries_logits
torch.save((masks, masks_again), f"{folder}/masks.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model that sees segments of many classes, its image processor and a photo."""
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    processor().save_pretrained(folder)
    photo(60, 80).save(folder / "photo.png")
    return folder


def assert_same_segments(actual: list[dict], expected: list[dict]) -> None:
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected):
        assert (a["label"], a["score"]) == (b["label"], pytest.approx(b["score"], abs=1e-4))
        assert np.mean(np.asarray(a["mask"]) == np.asarray(b["mask"])) > 0.999


@pytest.fixture(scope="module")
def segment(folder) -> ImageSegmentationPipeline:
    return pipeline("image-segmentation", model=str(folder))


@pytest.mark.parametrize("subtask", ["semantic", "instance", "panoptic", None])
def test_stock_pipeline(segment, subtask):
    """One by one, as a list and in batches; by default panoptic."""
    photos = [photo(60, 80), photo(120, 160, seed=1), photo(30, 40, seed=2)]  # of one aspect ratio
    options = {"threshold": 0.3} | ({} if subtask is None else {"subtask": subtask})
    one_by_one = [segment(photo, **options) for photo in photos]
    for outputs in (segment(photos, **options), segment(photos, batch_size=2, **options)):
        for segments, expected in zip(outputs, one_by_one, strict=True):
            assert_same_segments(segments, expected)
    for segments, image in zip(one_by_one, photos):
        assert all(segment["label"] in LABELS and segment["mask"].size == image.size for segment in segments)
        assert subtask != "semantic" or sum(np.asarray(segment["mask"]) == 255 for segment in segments).all()
    if subtask is None:
        assert_same_segments(one_by_one[0], segment(photos[0], threshold=0.3, subtask="panoptic"))


@torch.no_grad()
def test_remote_code(folder, segment):
    """A saved folder is complete for the Hub, where offseg_hf is not installed."""
    run_python(SCRIPT, folder, cwd=folder)  # not in the repository
    outputs = torch.load(folder / "outputs.pt", weights_only=False)
    image = Image.open(folder / "photo.png")
    masks = small_model()(**processor()(image, return_tensors="pt")).masks_queries_logits
    assert_same_outputs(torch.load(folder / "masks.pt"), (masks, masks))
    for segments, options in zip(outputs, ({"subtask": "semantic"}, {"threshold": 0.3}), strict=True):
        assert_same_segments(segments, segment(image, **options))
    code = {path.name for path in folder.glob("*.py")}
    assert code == {path.name for path in (folder / "again").glob("*.py")}
    assert {f"{part}_offset_mask2former.py" for part in ("modeling", "configuration", "image_processing")} < code
