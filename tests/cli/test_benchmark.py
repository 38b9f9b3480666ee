"""`offseg benchmark`: what is measured is the model, in each runtime, and what cannot be is said."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from offseg_hf.benchmark import Runtime
from offseg_hf.benchmark.benchmark import BenchmarkOptions, Worker, benchmark, ways_of
from offseg_hf.benchmark.machine import resident_bytes
from offseg_hf.benchmark.subject import Subject, subject_of
from offseg_hf.benchmark.worker import Runner, Task
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export import Format, Precision
from tests.cli.running import assert_one_line, offseg
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    render_scene(0, (96, 64))[0].save(path)
    return path


def task_of(model: Path, photo: Path, runtime: Runtime = Runtime.eager, **changes) -> Task:
    fields = {"precision": Precision.fp32, "device": "cpu", "threads": 1, "batch_size": 1, "label_map": ""}
    return Task(str(model), runtime, photo=str(photo), **fields | changes)


def test_ways():
    """Everything for a model, its own runtime for an export, and what was asked for."""
    model = Subject("model", "model")
    cpu = BenchmarkOptions(devices=["cpu"])
    assert [(way.runtime, way.precision) for way in ways_of(model, cpu)] == [
        ("eager", "fp32"),
        ("fused", "fp32"),
        ("onnx", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    ]
    int8 = BenchmarkOptions(devices=["cpu"], precisions=[Precision.int8])
    assert [(way.runtime, way.precision) for way in ways_of(model, int8)] == [("onnx", "int8"), ("openvino", "int8")]
    gpu = BenchmarkOptions(devices=["cuda"], runtimes=[Runtime.eager, Runtime.onnx])
    assert [(way.precision, way.device) for way in ways_of(model, gpu)] == [(name, "cuda") for name in Precision][:3]
    programs = BenchmarkOptions(devices=["cpu"], runtimes=[Runtime.torch, Runtime.aotinductor])
    assert [(way.runtime, way.precision) for way in ways_of(model, programs)] == [
        ("torch", "fp32"),
        ("aotinductor", "fp32"),
    ]
    for format, precision in [*((format, Precision.fp32) for format in Format), (Format.onnx, Precision.fp16)]:
        exported = Subject("exported", "exported", exported=(format, precision))
        assert [(way.runtime, way.precision) for way in ways_of(exported)] == [(format, precision)]


def test_models_without_weights_are_built(model, tmp_path):
    """The same each time; what has weights is loaded."""
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert subject_of(str(model), tmp_path / "none") == Subject(str(model), str(model))
    weights = []
    for name in "ab":
        subject = subject_of(str(bare), tmp_path / name)
        assert subject == Subject(str(bare), str(tmp_path / name), built=True)
        weights.append(AutoModelForSemanticSegmentation.from_pretrained(subject.source).state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(first, second) for first, second in zip(*(each.values() for each in weights)))


def test_what_a_worker_runs(model, photo):
    """A window for the network, the batch, and the photo's own label map; memory is that of a forward."""
    runner = Runner(task_of(model, photo, Runtime.fused, batch_size=3))
    assert runner.loaded.image == [64, 64] and runner.loaded.parts == ["network", "batch", "photo"]
    assert runner.segmenter.network is not runner.segmenter.model and runner.segmenter.network.is_fused
    seen = []
    runner.segmenter.network.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    for part in ("network", "batch"):
        seconds, cpu_seconds = runner.run(part)
        assert 0 < seconds < 60 and cpu_seconds > 0
    assert seen == [(1, 3, 64, 64), (3, 3, 64, 64)]
    assert runner.segment().shape == (64, 96)
    if resident_bytes() is not None:  # in this process there may be freed memory to begin with
        assert 0 <= runner.loaded.memory < 2**30


def test_an_interrupted_benchmark_has_what_was_measured(model, photo, monkeypatch):
    """What is not installed is left out, with the command that installs it."""
    steps = []

    def interrupt(text: str, done: int, total: int) -> None:
        steps.append((done, total))
        if (done, total) == (5, 9):  # three runs of network, batch and photo
            raise KeyboardInterrupt

    options = BenchmarkOptions((Runtime.eager, Runtime.onnx), devices=["cpu"], threads=1, runs=3, batch_size=2)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    report = benchmark([str(model)], options=options, photos=[photo], progress=interrupt)
    facts = report.facts()
    assert facts["interrupted"] and steps[-6:] == [(done, 9) for done in range(6)]
    (result,) = facts["results"]
    assert [result[part]["runs"] for part in ("network", "batch", "photo")] == [2, 2, 1]
    for part in ("network", "batch", "photo"):
        times = result[part]
        assert 0 < times["min"] <= times["median"] <= times["p90"]
    assert result["images_per_second"] == pytest.approx(2000 / result["batch"]["median"], rel=0.01)
    assert (result["model"], result["image"], result["random_weights"]) == (str(model), [64, 64], False)
    assert facts["photo"] == {"file": str(photo), "size": [64, 96]}
    (left_out,) = facts["left_out"]
    assert left_out["what"] == f"{model}: onnx fp32" and 'pip install "offseg-hf[export]"' in left_out["why"]
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.slow
def test_a_process_that_ends_is_an_error(model, photo):
    with Worker(task_of(model / "config.json", photo)) as worker, pytest.raises(ValueError, match="config.json"):
        worker.answer()


def test_wrong_usage(model):
    assert_one_line(offseg("benchmark", "offseg-x-ade"), "no model at offseg-x-ade", "did you mean offseg-")
    assert_one_line(offseg("benchmark", model, "--photos", "nowhere.jpg"), "nowhere.jpg: no such file")


@pytest.mark.slow
def test_every_runtime(model, photo, tmp_path):
    """By the command: one table, the figures as JSON, exports that are kept and taken again, labels that stay."""
    command = ("benchmark", model, "--photos", photo, "--threads", "1", "--runs", "2", "--output", tmp_path / "kept")
    results = []
    for name in ("first.json", "second.json"):
        result = offseg(*command, "--json", tmp_path / name)
        assert result.returncode == 0, result.stderr
        assert f"{model}, 64x64" in result.stdout and "1 threads" in result.stdout
        results.append(json.loads((tmp_path / name).read_text()))
    for figures in results:
        ways = [(each["runtime"], each["precision"]) for each in figures["results"]]
        assert ways[:4] == [("eager", "fp32"), ("fused", "fp32"), ("onnx", "fp32"), ("openvino", "fp32")]
        assert not figures["left_out"]
        assert all(each["equal_labels"] > 0.99 for each in figures["results"][1:])
    (onnx,) = (tmp_path / "kept").glob("*/onnx-fp32")
    written = (onnx / "model.onnx").stat().st_mtime
    alone = offseg("benchmark", onnx, "--photos", photo, "--threads", "1", "--runs", "1")
    assert alone.returncode == 0 and "onnx fp32" in alone.stdout and "eager" not in alone.stdout
    assert (onnx / "model.onnx").stat().st_mtime == written
    int8 = offseg(*command, "--runtime", "onnx", "--precision", "int8")
    assert int8.returncode == 1 and "int8 needs photos to calibrate with" in int8.stdout


@pytest.mark.slow
def test_programs_of_pytorch(model, photo, tmp_path):
    """Of a model, and as a folder that was exported: what `torch.export` has made, with the model's labels."""
    command = ("benchmark", "--photos", photo, "--threads", "1", "--runs", "1", "--json", tmp_path / "figures.json")
    runtimes = ("--runtime", "eager", "--runtime", "torch")
    result = offseg(*command, model, *runtimes, "--output", tmp_path / "kept")
    assert result.returncode == 0, result.stderr
    eager, program = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert (eager["runtime"], program["runtime"]) == ("eager", "torch") and program["equal_labels"] > 0.99
    (exported,) = (tmp_path / "kept").glob("*/torch-fp32")
    result = offseg(*command, exported)
    assert result.returncode == 0, result.stderr
    (alone,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert (alone["runtime"], alone["precision"], alone["model"]) == ("torch", "fp32", str(exported))


@pytest.mark.slow
def test_masks_in_other_runtimes(photo, tmp_path):
    """The export for OpenVINO, which is made of the one for ONNX Runtime, is one of masks."""
    tiny_model("mask2former", 0).save_pretrained(tmp_path / "model")
    tiny_processor("mask2former").save_pretrained(tmp_path / "model")
    options = BenchmarkOptions((Runtime.eager, Runtime.onnx, Runtime.openvino), [Precision.fp32], ["cpu"], 1, 1)
    report = benchmark([str(tmp_path / "model")], options=options, photos=[photo], exports=tmp_path / "kept")
    assert not report.left_out
    assert [each.equal_labels > 0.99 for each in report.measurements[1:]] == [True, True]
    kept = [subject_of(str(path), tmp_path) for path in sorted((tmp_path / "kept").glob("*/*-fp32"))]
    assert [each.exported for each in kept] == [(Format.onnx, Precision.fp32), (Format.openvino, Precision.fp32)]


@pytest.mark.slow
def test_compiled(model, photo):
    """With weights frozen, which is what makes it worth its time: the option of torch.compile alone does nothing."""
    runner = Runner(task_of(model, photo, Runtime.compiled))
    assert runner.loaded.parts == ["network"] and runner.run("network")[0] > 0
