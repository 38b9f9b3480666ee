"""Comparison of evaluations: only of the same images, with the interval of a paired bootstrap over them."""

import json
from pathlib import Path

import numpy as np
import pytest

from offseg_hf.data.label_sets import LABEL_SETS, LabelSet
from offseg_hf.evaluation.comparison import DRAWS, SEED, SavedEvaluation, check_comparable, compare
from offseg_hf.evaluation.image_counts import ImageCounts
from offseg_hf.evaluation.metric import MeanIoU
from offseg_hf.evaluation.outputs import write_json
from offseg_hf.evaluation.report import metric_report
from tests.evaluation.counted import counted


NAMES = ("sky", "road", "tree", "car", "never there")
TITLE = "five, val"


def saved(folder: Path, counts: ImageCounts, metric: MeanIoU, names: tuple[str, ...] = NAMES) -> Path:
    """What an evaluation writes of its counts."""
    labels = LabelSet("five", "five", names, LABEL_SETS["cityscapes"].palette[: len(names)], (), (), False)
    result = {**metric.compute(), "confusion_matrix": metric.confusion_matrix.numpy(), "image_counts": counts}
    facts = {"model": {"name": "older"}, "dataset": {"title": "five", "split": "val", "num_images": len(counts)}}
    folder.mkdir(exist_ok=True)
    counts.write(folder)
    write_json(folder / "evaluation.json", {**metric_report(result, labels), **facts})
    return folder / "evaluation.json"


def five_classes(images: int, seed: int = 0, share: float = 0.2) -> tuple[ImageCounts, MeanIoU]:
    counts, metric = counted(images, 4, seed, share)
    larger = MeanIoU(5)
    larger.confusion_matrix[:4, :4] = metric.confusion_matrix
    return ImageCounts(5, counts.rows), larger


def test_differences_are_those_of_the_metrics(tmp_path):
    ours, metric = five_classes(12, seed=1, share=0.1)
    theirs, older = five_classes(12, seed=2)
    comparison = compare(ours, SavedEvaluation.load(saved(tmp_path / "old", theirs, older)), NAMES, TITLE)
    for name in ("mIoU", "aAcc"):
        row = comparison["metrics"][name]
        assert row["here"] == pytest.approx(metric.compute()[name], abs=1e-6)
        assert row["there"] == pytest.approx(older.compute()[name], abs=1e-6)
        assert row["difference"] == pytest.approx(row["here"] - row["there"], abs=2e-6)
        assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]
    boundary = np.nanmean(ours.boundary_iou()) - np.nanmean(theirs.boundary_iou())
    assert comparison["metrics"]["mBoundaryIoU"]["difference"] == pytest.approx(boundary, abs=2e-6)
    assert comparison["classes"][4]["IoU"] == {"here": None, "there": None, "difference": None, "interval": None}
    assert comparison["images"] == {"better": 12, "worse": 0, "of": 12}
    assert comparison["with"] == str(tmp_path / "old" / "evaluation.json")
    json.dumps(comparison, allow_nan=False)


def test_intervals_are_those_of_a_plain_bootstrap(tmp_path):
    ours, _ = five_classes(7, seed=1, share=0.18)
    theirs, older = five_classes(7, seed=2)
    old = SavedEvaluation.load(saved(tmp_path / "old", theirs, older))
    generator, drawn = np.random.default_rng(SEED), []
    for _ in range(DRAWS):
        images = generator.integers(7, size=7)
        scores = []
        for counts in (ours, theirs):
            matrix = np.zeros((5, 5))
            for image in images:
                row = counts.rows[image]
                matrix[row["label"], row["prediction"]] += row["pixels"]
            hits, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
            scores.append((hits[union > 0] / union[union > 0]).mean())
        drawn.append(scores[0] - scores[1])
    expected = np.quantile(drawn, (0.025, 0.975))
    first, second = (compare(ours, old, NAMES, TITLE) for _ in range(2))
    np.testing.assert_allclose(first["metrics"]["mIoU"]["interval"], expected, atol=2e-6)
    assert first == second


def test_the_same_evaluation_has_no_difference(tmp_path):
    ours, metric = five_classes(5)
    comparison = compare(ours, SavedEvaluation.load(saved(tmp_path / "old", ours, metric)), NAMES, TITLE)
    for row in (*comparison["metrics"].values(), *(row["IoU"] for row in comparison["classes"][:4])):
        assert row["difference"] == 0 and row["interval"] == [0, 0]
    assert comparison["images"] == {"better": 0, "worse": 0, "of": 5}


def test_other_images_and_classes_are_refused_by_name(tmp_path):
    counts, metric = five_classes(4)
    old = SavedEvaluation.load(saved(tmp_path / "old", counts, metric))
    names = counts.names
    check_comparable(old, NAMES, names, TITLE)
    check_comparable(old, NAMES, None, TITLE)  # of a stream
    check_comparable(old, NAMES, [f"/elsewhere/{name}" for name in names], TITLE)

    def refusal(class_names, image_names) -> str:
        with pytest.raises(ValueError, match=r"old/evaluation\.json cannot be compared with: ") as caught:
            check_comparable(old, class_names, image_names, "six, train")
        return str(caught.value).partition("compared with: ")[2]

    assert refusal(NAMES, [*names[1:], names[0]]).startswith(
        "image 0 is '000.jpg' there (five, val), but '001.jpg' here (six, train). Compare evaluations of the same"
    )
    assert refusal(NAMES, names[:2]).startswith("the number of images is 4 there (five, val), but 2 here")
    assert refusal(("sky", "lane", *NAMES[2:]), names).startswith("class 1 is 'road' there")
    assert refusal(NAMES[:4], names).startswith("the number of classes is 5 there")


def test_other_annotations_are_refused_by_name(tmp_path):
    counts, metric = five_classes(4)
    old = SavedEvaluation.load(saved(tmp_path / "old", counts, metric))
    rows = [dict(row) for row in counts.rows]
    rows[2]["pixels"] = rows[2]["pixels"] + 1
    with pytest.raises(ValueError, match=r"the annotation of val/002\.jpg is another one there \(1 of 4 differ\)"):
        compare(ImageCounts(5, rows), old, NAMES, TITLE)


def test_evaluations_without_counts_of_their_own_are_refused(tmp_path):
    path = saved(tmp_path / "old", *five_classes(4))
    assert SavedEvaluation.load(tmp_path / "old").path == path
    other = saved(tmp_path / "other", *five_classes(5))
    file = path.with_name("image_counts.parquet")
    file.write_bytes(other.with_name("image_counts.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"image_counts\.parquet is not of the evaluation in .*: evaluate again"):
        SavedEvaluation.load(path)
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"image_counts\.parquet: expected counts .*: evaluate again"):
        SavedEvaluation.load(path)
    file.unlink()  # as of evaluations before there were any
    with pytest.raises(ValueError, match=r"has no image_counts\.parquet beside it.*: evaluate again, with a folder"):
        SavedEvaluation.load(path)
    path.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"expected the evaluation\.json of an evaluation, got another file"):
        SavedEvaluation.load(path)
    with pytest.raises(ValueError, match=r"expected the evaluation\.json of an evaluation, got no file"):
        SavedEvaluation.load(tmp_path / "nowhere" / "evaluation.json")
