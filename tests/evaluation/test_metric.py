"""Metrics: counts against a loop over pixels, official numbers, processes, and evaluate's interface."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offseg_hf.evaluation.metric import CHUNK, MEAN_IOU_SCRIPT, MeanIoU
from tests.parity.fill import label_maps
from tests.processes import run_together


GOLDEN = Path(__file__).parents[1] / "parity" / "goldens" / "metric.json"
RATIOS = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")
CLASSES = 7
INTEGER_TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


def some_maps(*shape: int, seed: int = 0, ignore: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of which about half agree; some labels are ignored, class 5 never occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, shape)
    predictions = np.where(rng.random(shape) < 0.5, labels, rng.integers(0, CLASSES, shape))
    labels[labels == 5], predictions[predictions == 5] = 4, 4
    return predictions, np.where(rng.random(shape) < 0.1, ignore, labels)


def count(predictions: np.ndarray, labels: np.ndarray, ignore: int = 255) -> np.ndarray:
    matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for prediction, label in zip(predictions.flat, labels.flat):
        if label != ignore:
            matrix[label, prediction] += 1
    return matrix


def by_definition(matrix: np.ndarray) -> dict[str, list[float]]:
    """Ratios per class from hits, misses and false alarms, in Python's floats."""
    ratios = {name: [] for name in RATIOS}
    for label in range(len(matrix)):
        hits = float(matrix[label, label])
        misses, alarms = float(matrix[label].sum()) - hits, float(matrix[:, label].sum()) - hits
        precision, recall = divide(hits, hits + alarms), divide(hits, hits + misses)
        ratios["IoU"].append(divide(hits, hits + misses + alarms))
        ratios["Acc"].append(recall)
        ratios["Dice"].append(divide(2 * hits, 2 * hits + misses + alarms))
        ratios["Fscore"].append(divide(2 * precision * recall, precision + recall))
        ratios["Precision"].append(precision)
        ratios["Recall"].append(recall)
    return ratios


def divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def metric_of(predictions, labels, **options) -> MeanIoU:
    metric = MeanIoU(CLASSES, **options)
    metric.update(predictions, labels)
    return metric


def golden_pairs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The four pairs that the official metric was given (predictions, labels), one map of 1 x (97 + i) x 131 each."""
    predictions, labels = [], []
    for i in range(4):
        label = label_maps(f"metric:label{i}", (1, 97 + i, 131), 150)
        prediction = label.copy()
        prediction.flat[::3] = label_maps(f"metric:pred{i}", label.shape, 150).flat[::3]
        prediction[prediction == 255] = 0
        label[label > 120] = 255 if i == 0 else 7
        predictions.append(prediction[0])
        labels.append(label[0])
    return predictions, labels


def test_official_numbers():
    golden = json.loads(GOLDEN.read_text())
    metric = MeanIoU(150)
    metric.update(*golden_pairs())
    results = metric.compute()
    assert results["aAcc"] == pytest.approx(golden["aAcc"], abs=1e-6)  # float32 there
    for name in RATIOS:
        assert results[f"m{name}"] == pytest.approx(golden[name], abs=1e-6), name
    np.testing.assert_allclose(results["IoU_per_class"], golden["IoU_per_class"], atol=1e-6)


def test_definitions():
    predictions, labels = some_maps(2, 40, 30)
    metric = metric_of(predictions, labels)
    matrix = count(predictions, labels)
    assert metric.confusion_matrix.dtype == torch.int64
    np.testing.assert_array_equal(metric.confusion_matrix, matrix)
    results = metric.compute()
    assert results["aAcc"] == matrix.trace() / matrix.sum()
    for name, values in by_definition(matrix).items():
        assert np.isnan(values[5])  # neither in labels nor predicted
        np.testing.assert_allclose(results[f"{name}_per_class"], values, rtol=1e-14)
        assert results[f"m{name}"] == pytest.approx(np.nanmean(values), rel=1e-14)


def test_classes_that_are_only_labeled_or_only_predicted():
    results = metric_of(np.array([[0, 0, 0, 2]]), np.array([[0, 0, 1, 0]])).compute()
    nan = float("nan")
    expected = {
        "IoU": [2 / 4, 0, 0],
        "Acc": [2 / 3, 0, nan],
        "Dice": [4 / 6, 0, 0],
        "Fscore": [4 / 6, nan, nan],
        "Precision": [2 / 3, nan, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(results[f"{name}_per_class"], values + 4 * [nan])
        assert results[f"m{name}"] == pytest.approx(np.nanmean(values))


@pytest.mark.filterwarnings("error")
def test_nothing_counted_is_nan():
    metric = MeanIoU(CLASSES)
    metric.update(np.zeros((0, 4, 4), dtype=int), np.zeros((0, 4, 4), dtype=int))
    metric.update(np.zeros((1, 4, 4), dtype=int), np.full((1, 4, 4), 255))
    assert all(np.isnan(value).all() for value in metric.compute().values())


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
def test_integer_types(dtype, as_tensor):
    ignore = 127 if dtype == "int8" else 255
    predictions, labels = some_maps(2, 12, 9, ignore=ignore)
    expected = count(predictions, labels, ignore)
    convert = torch.from_numpy if as_tensor else np.asarray
    given = convert(predictions.astype(dtype)), convert(labels.astype(dtype))
    np.testing.assert_array_equal(metric_of(*given, ignore_index=ignore).confusion_matrix, expected)
    mixed = metric_of(given[0], torch.from_numpy(labels), ignore_index=ignore)
    np.testing.assert_array_equal(mixed.confusion_matrix, expected)


@pytest.mark.parametrize("ignore", [-100, -1, 0, 3, 99, 65535])
def test_any_ignore_index(ignore):
    predictions, labels = some_maps(12, 9, ignore=ignore)
    matrix = metric_of(predictions, labels, ignore_index=ignore).confusion_matrix
    np.testing.assert_array_equal(matrix, count(predictions, labels, ignore))


def test_whatever_is_predicted_on_ignored_pixels():
    predictions, labels = some_maps(12, 9)
    matrix = count(predictions, labels)
    for value in (255, -1, 1000):
        predictions[labels == 255] = value
        np.testing.assert_array_equal(metric_of(predictions, labels).confusion_matrix, matrix)


def test_kinds_of_batches():
    predictions, labels = some_maps(3, 12, 9)
    matrix = count(predictions, labels)
    images = [Image.fromarray(label.astype(np.uint8)) for label in labels]
    flipped = predictions[:, ::-1], labels[:, ::-1]
    foreign = predictions.astype(">i2"), labels.astype(">i4")
    batches = [(list(predictions), labels), (tuple(torch.from_numpy(predictions)), images), flipped, foreign]
    for batch in [*batches, (predictions.tolist(), labels.tolist())]:
        np.testing.assert_array_equal(metric_of(*batch).confusion_matrix, matrix)
    single = MeanIoU(CLASSES)
    for prediction, image in zip(predictions, images):
        single.update(prediction, image)
    np.testing.assert_array_equal(single.confusion_matrix, matrix)


def test_maps_of_unequal_sizes():
    pairs = [some_maps(4 + i, 9 - i, seed=i) for i in range(4)]
    metric = metric_of(*map(list, zip(*pairs)))
    np.testing.assert_array_equal(metric.confusion_matrix, sum(count(*pair) for pair in pairs))


def test_large_batches_in_pieces():
    predictions, labels = some_maps(3, 470, 390)
    assert predictions.size > CHUNK
    np.testing.assert_array_equal(metric_of(predictions, labels).confusion_matrix, count(predictions, labels))


def test_arguments_are_not_changed():
    predictions, labels = some_maps(2, 6, 5)
    kept = predictions.copy(), labels.copy()
    metric_of(predictions, labels)
    metric_of(torch.from_numpy(predictions), torch.from_numpy(labels))
    np.testing.assert_array_equal((predictions, labels), kept)


ZEROS = np.zeros((2, 4, 5), dtype=np.uint8)


@pytest.mark.parametrize(
    ("predictions", "labels", "error", "message"),
    [
        (ZEROS, ZEROS[:, :3], ValueError, r"\(2, 4, 5\) and \(2, 3, 5\)"),
        (ZEROS, ZEROS[0], ValueError, r"\(2, 4, 5\) and \(4, 5\)"),
        (ZEROS[None], ZEROS[None], ValueError, r"\(1, 2, 4, 5\) .*then take the class"),
        (ZEROS[0, 0], ZEROS[0, 0], ValueError, r"\(5,\)"),
        (list(ZEROS), list(ZEROS[:1]), ValueError, "as many predictions as labels, got 2 and 1"),
        ([ZEROS[0], ZEROS[0]], [ZEROS[0], ZEROS[0, 1:]], ValueError, r"image 1: .*\(4, 5\) and \(3, 5\)"),
        ([0, 1], [0, 1], ValueError, r"image 0: .*\(\)"),
        (torch.zeros(2, 4, 5), ZEROS, TypeError, r"predictions .*torch.float32 of shape \(2, 4, 5\)"),
        (ZEROS, ZEROS.astype(np.float64), TypeError, "labels .*float64"),
        (ZEROS, ZEROS.astype(str), TypeError, "labels .*<U"),
        (ZEROS + 7, ZEROS, ValueError, "classes 0 to 6, .*prediction 7 at 40 pixels"),
        (ZEROS, ZEROS + 8, ValueError, "label 8 at 40 pixels"),
        (ZEROS, ZEROS.astype(np.int64) - 1, ValueError, "label -1 at 40 pixels"),
        (ZEROS + 255, ZEROS, ValueError, "prediction 255 at 40 pixels"),
        (ZEROS, ZEROS.astype(np.int64) + 2**32, ValueError, "label 4294967296 at 40 pixels"),
        (ZEROS, np.arange(40).reshape(2, 4, 5), ValueError, "label 7 at 1 pixels.*label 11 at 1 pixels and 28 more"),
        (ZEROS, np.arange(40).reshape(2, 4, 5) * 10**6, ValueError, "label 1000000 at 1 pixels.*and 34 more"),
    ],
)
def test_errors_name_what_came(predictions, labels, error, message):
    metric = MeanIoU(CLASSES)
    with pytest.raises(error, match=message):
        metric.update(predictions, labels)
    assert not metric.confusion_matrix.any()


def test_without_an_ignore_index_every_pixel_counts():
    predictions, labels = some_maps(6, 5, seed=1)
    labels = labels % CLASSES
    metric = MeanIoU(CLASSES, ignore_index=None)
    metric.update(predictions % CLASSES, labels)
    assert metric.confusion_matrix.sum() == labels.size
    assert MeanIoU(CLASSES, None).state_dict()["ignore_index"] is None
    with pytest.raises(ValueError, match="expected classes 0 to 6; got label 255 at 40 pixels"):
        metric.update(ZEROS, ZEROS + 255)


@pytest.mark.parametrize("ignore_index", [65535, -(2**40), 2**31])
def test_an_ignore_index_far_away(ignore_index):
    """A table of all values in between would not fit into memory."""
    predictions, labels = some_maps(50, 40, seed=2)
    metric = MeanIoU(CLASSES, ignore_index)
    metric.update(predictions, np.where(labels == 255, ignore_index, labels.astype(np.int64)))
    assert torch.equal(metric.confusion_matrix, metric_of(predictions, labels).confusion_matrix)
    assert 0 < metric.confusion_matrix.sum() < labels.size


def test_wrong_batches_are_not_counted_in_part():
    metric = MeanIoU(CLASSES)
    with pytest.raises(ValueError, match="label 7"):
        metric.update(list(ZEROS), [ZEROS[0], ZEROS[1] + 7])
    assert not metric.confusion_matrix.any()


def test_classes_are_needed():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        MeanIoU(0)


def test_devices():
    """The meta device stands for one that is not the CPU: it runs no kernels, but knows what lies where."""
    assert MeanIoU(CLASSES, device="meta").confusion_matrix.device.type == "meta"
    there = torch.zeros(2, 4, 5, dtype=torch.int64, device="meta")
    for predictions in (there, list(there)):
        metric = MeanIoU(CLASSES)
        with pytest.raises((RuntimeError, NotImplementedError)):
            metric.update(predictions, ZEROS)
        assert metric.device.type == metric.confusion_matrix.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    predictions, labels = some_maps(3, 12, 9)
    metric = metric_of(torch.from_numpy(predictions).cuda(), labels)
    assert metric.confusion_matrix.is_cuda
    np.testing.assert_array_equal(metric.confusion_matrix.cpu(), count(predictions, labels))
    assert metric.compute()["mIoU"] == metric_of(predictions, labels).compute()["mIoU"]


def test_counts_beyond_32_bits():
    metric = metric_of(np.array([[0, 1]]), np.array([[0, 0]]))
    metric.confusion_matrix *= 2**53  # where float64 begins to round
    metric.update(np.array([[0]]), np.array([[0]]))
    assert metric.confusion_matrix[0, :2].tolist() == [2**53 + 1, 2**53]
    assert metric.compute()["aAcc"] == 0.5


def test_reset():
    metric = metric_of(*some_maps(6, 5))
    metric.reset()
    metric.update(ZEROS, ZEROS)
    assert metric.confusion_matrix[0, 0] == metric.confusion_matrix.sum() == 40


def test_addition():
    first, second = (metric_of(*some_maps(6, 5, seed=seed)) for seed in range(2))
    kept = first.confusion_matrix.clone()
    total = first + second
    assert torch.equal(total.confusion_matrix, kept + second.confusion_matrix)
    total.update(ZEROS, ZEROS)
    assert torch.equal(first.confusion_matrix, kept)
    with pytest.raises(ValueError, match="num_classes=6, ignore_index=0 cannot be added .*num_classes=7"):
        first + MeanIoU(6, ignore_index=0)
    with pytest.raises(TypeError):
        first + 1


def test_interrupted_evaluations_go_on():
    batches = [some_maps(6, 5, seed=seed) for seed in range(4)]
    whole, first_half = MeanIoU(CLASSES), MeanIoU(CLASSES)
    for batch in batches:
        whole.update(*batch)
    for batch in batches[:2]:
        first_half.update(*batch)
    file = io.BytesIO()
    torch.save(first_half.state_dict(), file)
    file.seek(0)
    loaded = MeanIoU(CLASSES)
    loaded.load_state_dict(torch.load(file))
    for metric in (loaded, pickle.loads(pickle.dumps(first_half))):
        for batch in batches[2:]:
            metric.update(*batch)
        assert torch.equal(metric.confusion_matrix, whole.confusion_matrix)
    with pytest.raises(ValueError, match="num_classes=7, ignore_index=255 cannot be loaded to .*num_classes=9"):
        MeanIoU(9).load_state_dict(first_half.state_dict())


def test_one_process_alone():
    metric = metric_of(*some_maps(6, 5))
    total = metric.across_processes()
    assert torch.equal(total.confusion_matrix, metric.confusion_matrix)
    total.reset()
    assert metric.confusion_matrix.any()


@pytest.fixture(scope="module")
def evaluate_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture
def mean_iou(evaluate_cache, monkeypatch):
    """A module as a user loads it; what evaluate writes goes to a folder of this test run."""
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(evaluate_cache / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return evaluate.load(MEAN_IOU_SCRIPT, cache_dir=str(evaluate_cache / "data"))


def test_evaluate_interface(mean_iou, evaluate_cache):
    pairs = [some_maps(4 + i, 9 - i, seed=i) for i in range(4)]
    predictions, references = map(list, zip(*pairs))
    mean_iou.add_batch(predictions=predictions[:2], references=references[:2])
    mean_iou.add(prediction=predictions[2], reference=references[2])
    assert len(mean_iou) == 3 and mean_iou.name == "mean_iou"
    results = mean_iou.compute(
        predictions=predictions[3:], references=references[3:], num_labels=CLASSES, ignore_index=255
    )
    expected = metric_of(predictions, references).compute()
    assert results.keys() == {
        "mean_iou",
        "mean_accuracy",
        "overall_accuracy",
        "per_category_iou",
        "per_category_accuracy",
    }
    assert results["mean_iou"] == expected["mIoU"] and results["mean_accuracy"] == expected["mAcc"]
    assert results["overall_accuracy"] == expected["aAcc"]
    np.testing.assert_array_equal(results["per_category_iou"], expected["IoU_per_class"])
    np.testing.assert_array_equal(results["per_category_accuracy"], expected["Acc_per_class"])
    assert len(mean_iou) == 0 and not list(evaluate_cache.rglob("*.arrow"))
    with pytest.raises(ValueError, match="nothing to compute"):
        mean_iou.compute(num_labels=CLASSES, ignore_index=255)


def test_evaluate_as_the_guides_call_it(mean_iou):
    """SegFormer's fine-tuning guides call the method below `compute`, with all of a validation set at once."""
    predictions, references = ([maps] for maps in some_maps(6, 5))
    mean_iou.add_batch(predictions=predictions, references=references)
    arguments = {"num_labels": CLASSES, "ignore_index": 255, "reduce_labels": False}
    first = mean_iou._compute(predictions=predictions, references=references, **arguments)
    assert first["mean_iou"] == metric_of(predictions, references).compute()["mIoU"]
    assert len(mean_iou) == 1  # what was added waits for `compute`
    with pytest.raises(ValueError, match="references are missing"):
        mean_iou._compute(predictions=predictions, references=None, **arguments)


@pytest.mark.parametrize("ignore_index", [65535, None])
def test_evaluate_with_many_classes(mean_iou, ignore_index):
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, 300, (64, 64)).astype(np.uint16)
    references = np.where(rng.random((64, 64)) < 0.5, predictions, rng.integers(0, 300, (64, 64))).astype(np.uint16)
    if ignore_index is not None:
        references[:8] = ignore_index
    expected = MeanIoU(300, ignore_index)
    expected.update(predictions, references)
    results = mean_iou.compute(
        predictions=[predictions], references=[references], num_labels=300, ignore_index=ignore_index
    )
    assert results["mean_iou"] == expected.compute()["mIoU"] > 0.3


def test_evaluate_combines_it(mean_iou):
    import evaluate

    predictions, references = some_maps(6, 5)
    combined = evaluate.combine({"first": mean_iou, "same": mean_iou})
    combined.add(prediction=predictions, reference=references)
    assert len(mean_iou) == 2
    assert mean_iou.compute(num_labels=CLASSES)["mean_iou"] == metric_of(predictions, references).compute()["mIoU"]


def test_numbers_of_evaluate(mean_iou):
    """The example of evaluate's documentation."""
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    results = mean_iou.compute(predictions=predictions, references=references, num_labels=10, ignore_index=255)
    assert results["mean_iou"] == pytest.approx(0.4775)
    assert results["mean_accuracy"] == pytest.approx(0.5916666666666666)
    assert results["overall_accuracy"] == pytest.approx(0.5263157894736842)
    np.testing.assert_allclose(results["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(results["per_category_accuracy"], [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_background_and_ignored_pixels_are_left_out(mean_iou, dtype):
    references = np.array([[0, 0, 1, 1, 2, 2, 255]], dtype=dtype)
    predictions = np.array([[0, 1, 0, 0, 0, 1, 1]], dtype=dtype)
    for ignore in (255, 200, -100):  # of ADE20k's kind: 0 is the background, 1 the first class
        if ignore != 255 and dtype == "int64":
            references[0, 6] = ignore
        results = mean_iou.compute(
            predictions=[predictions], references=[references], num_labels=2, ignore_index=ignore, reduce_labels=True
        )
        np.testing.assert_allclose(results["per_category_iou"], [2 / 3, 1 / 2])
        assert results["overall_accuracy"] == 3 / 4
    assert references[0, 0] == 0 and references[0, 2] == 1


def test_ignoring_a_class_after_reduction(mean_iou):
    references, predictions = np.array([[0, 1, 2, 2]]), np.array([[1, 1, 1, 0]])
    results = mean_iou.compute(
        predictions=[predictions], references=[references], num_labels=2, ignore_index=0, reduce_labels=True
    )
    np.testing.assert_allclose(results["per_category_iou"], [0, 1 / 2])


def test_label_map_replaces_at_once(mean_iou):
    references = np.array([[0, 1, 1, 33]], dtype=np.uint8)
    results = mean_iou.compute(
        predictions=[np.array([[1, 0, 1, 1]])],
        references=[references],
        num_labels=2,
        ignore_index=-1,
        label_map={0: 1, 1: 0, 33: -1},
    )
    np.testing.assert_allclose(results["per_category_iou"], [1 / 2, 1 / 2])
    assert references.tolist() == [[0, 1, 1, 33]]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_nan_to_num_does_not_enter_the_means(mean_iou):
    arguments = {"predictions": ZEROS, "references": ZEROS, "num_labels": 3, "ignore_index": 255}
    assert np.isnan(mean_iou.compute(**arguments)["per_category_iou"]).tolist() == [False, True, True]
    results = mean_iou.compute(**arguments, nan_to_num=-1)
    assert results["per_category_iou"].tolist() == [1, -1, -1] and results["mean_iou"] == 1


def test_errors_of_evaluate_keep_what_was_added(mean_iou):
    mean_iou.add_batch(predictions=ZEROS, references=ZEROS + 3)
    for bad, message in (
        ({"num_labels": 3}, r"classes 0 to 2, .*prediction 0 beside reference 3 at 40 pixels"),
        ({"num_labels": 3, "label_map": {3: 9}}, r"reference 9 \(3 before"),
        ({"num_labels": 4, "predictions": ZEROS}, "references are missing"),
        ({"num_labels": 4, "predictions": ZEROS, "references": ZEROS[:, :2]}, r"image 0: .*\(4, 5\) and \(2, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_iou.compute(ignore_index=255, **bad)
    assert mean_iou.compute(num_labels=4, ignore_index=255)["per_category_accuracy"][3] == 0


PROCESSES = """
import json, sys
import evaluate, numpy as np
from accelerate import Accelerator
from offseg_hf.evaluation.metric import MEAN_IOU_SCRIPT, MeanIoU

state = Accelerator(cpu=True).state
predictions, labels = np.load(sys.argv[1])
mine = slice(state.process_index, None, state.num_processes)
metric = MeanIoU(7)
metric.update(predictions[mine], labels[mine])
first, second = metric.across_processes(), metric.across_processes()
large = MeanIoU(1)
large.confusion_matrix += 2**53 + state.process_index
module = evaluate.load(
    MEAN_IOU_SCRIPT, cache_dir=sys.argv[2], num_process=state.num_processes, process_id=state.process_index
)
module.add_batch(predictions=predictions[mine], references=labels[mine])
results = module.compute(num_labels=7, ignore_index=255)
report = {
    "processes": state.num_processes,
    "local": metric.confusion_matrix.tolist(),
    "total": first.confusion_matrix.tolist(),
    "again": second.confusion_matrix.tolist(),
    "large": int(large.across_processes().confusion_matrix),
    "evaluate": results and results["mean_iou"],
}
open(f"{sys.argv[2]}/report{state.process_index}.json", "w").write(json.dumps(report))
state.destroy_process_group()
"""


def test_two_processes(tmp_path):
    predictions, labels = some_maps(5, 12, 9)  # three images and two
    data = tmp_path / "maps.npy"
    np.save(data, (predictions, labels))
    run_together(2, PROCESSES, data, tmp_path)
    reports = [json.loads((tmp_path / f"report{i}.json").read_text()) for i in range(2)]
    expected = metric_of(predictions, labels)
    for i, report in enumerate(reports):
        assert report["processes"] == 2
        assert report["local"] == count(predictions[i::2], labels[i::2]).tolist()
        assert report["large"] == 2**54 + 1
        assert report["total"] == report["again"] == expected.confusion_matrix.tolist()
    assert [report["evaluate"] for report in reports] == [expected.compute()["mIoU"], None]
