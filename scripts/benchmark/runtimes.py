"""OffSeg-T beside SegFormer-B0 in the runtimes that models are exported for: sizes, milliseconds, memory.

    python scripts/benchmark/runtimes.py --output runtimes.json

Both have 150 classes and random weights, on which speed does not depend; one image of 512 x 512. All run in one
process, in turns: medians, minima, and processor time, which other programs disturb less. int8 is calibrated on
generated scenes. Memory, each in a process of its own, takes minutes: `--memory`.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from offseg_hf.conversion.convert import build_model
from offseg_hf.data.scenes.street import render_scene
from offseg_hf.export.memory import memory_of
from offseg_hf.export.onnx import export_onnx, quantize, to_half
from offseg_hf.export.openvino import convert_to_openvino
from offseg_hf.export.program import compile_program, write_program
from offseg_hf.export.runtime import ExportedConfig, open_network
from offseg_hf.export.trace import trace
from offseg_hf.zoo.presets import get_preset


SIZE, NUM_LABELS = 512, 150
PRESET = "offseg-t-ade"
# Name -> file, format, precision.
WAYS = {
    "ONNX Runtime": ("fp32.onnx", "onnx", "fp32"),
    "ONNX Runtime fp16": ("fp16.onnx", "onnx", "fp16"),
    "ONNX Runtime int8": ("int8.onnx", "onnx", "int8"),
    "OpenVINO f32": ("fp32.xml", "openvino", "fp32"),
    "OpenVINO bf16": ("fp32.xml", "openvino", "bf16"),
    "OpenVINO int8": ("int8.xml", "openvino", "int8"),
    "torch.export": ("program.pt2", "torch", "fp32"),
    "AOTInductor": ("compiled.pt2", "aotinductor", "fp32"),
}

COLUMNS = {"MB": "megabytes", "ms": "ms", "CPU ms": "cpu_ms", "MB of memory": "memory_mb"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--files", type=Path, help="folder to keep what is exported, and to go on with")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--compile", action="store_true", help="AOTInductor too, which takes minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.files or Path(temporary)
        runs, facts = {}, {}
        for name, model in (("OffSeg-T", offseg()), ("SegFormer-B0", segformer())):
            for way, file, run in ways_of(model, folder / name, arguments.compile):
                runs[name, way] = run
                facts[name, way] = {"megabytes": megabytes(file)}
                if arguments.memory:
                    facts[name, way]["memory_mb"] = memory_mb(folder / name, way)
                print(name, way, facts[name, way], flush=True)
        for key, row in timed(runs, arguments.runs).items():
            facts[key] |= row
            print(*key, facts[key], flush=True)
    rows = [{"model": name, "way": way, **row} for (name, way), row in facts.items()]
    arguments.output.write_text(json.dumps({"threads": arguments.threads, "rows": rows}, indent=2) + "\n")
    print(table(rows))


def table(rows: list[dict]) -> str:
    """The figures as docs/deploy.md has them: a row for each way, with both models."""
    by_way: dict[str, list[dict]] = {}
    for row in rows:
        by_way.setdefault(row["way"], []).append(row)
    columns = {name: key for name, key in COLUMNS.items() if key in rows[0]}
    names = [row["model"] for row in by_way["PyTorch"]]
    titles = ["", *(f"{name}, {column}" for column in columns for name in names)]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for way, both in by_way.items():
        lines.append([way, *(str(row.get(key, "")) for key in columns.values() for row in both)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def offseg() -> torch.nn.Module:
    model = build_model(get_preset(PRESET)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def segformer() -> torch.nn.Module:
    config = SegformerConfig(decoder_hidden_size=256, num_labels=NUM_LABELS)  # its defaults are those of B0
    return SegformerForSemanticSegmentation(config).eval()


def ways_of(model, folder: Path, compiled: bool) -> Iterator[tuple[str, Path | None, Callable]]:
    """Write the files of a model, and yield of each way its name, its file and a function of images."""
    folder.mkdir(parents=True, exist_ok=True)
    network, example = model.fuse() if hasattr(model, "fuse") else model, torch.randn(1, 3, SIZE, SIZE)
    if not (folder / "program.pt2").exists():
        write_files(network, example, folder)
    if compiled and not (folder / "compiled.pt2").exists():
        compile_program(trace(network, ["logits"], example), folder / "compiled.pt2", {})
    model.save_pretrained(folder / "model")
    SegformerImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder / "model")
    yield (
        "PyTorch",
        folder / "model" / "model.safetensors",
        lambda images: network(pixel_values=torch.from_numpy(images)),
    )
    for way, (file, format, precision) in WAYS.items():
        if (folder / file).exists():
            yield way, folder / file, open_network(folder / file, format, precision).run


def write_files(network, example: torch.Tensor, folder: Path) -> None:
    program = trace(network, ["logits"], example)
    export_onnx(program, folder / "fp32.onnx", ["logits"], {})
    for name in ("fp16", "int8"):
        shutil.copy(folder / "fp32.onnx", folder / f"{name}.onnx")
    to_half(folder / "fp16.onnx")
    quantize(folder / "int8.onnx", (scene(seed) for seed in range(8)))
    for name in ("fp32", "int8"):
        convert_to_openvino(folder / f"{name}.onnx", folder / f"{name}.xml", {})
    write_program(program, folder / "program.pt2", {})


def scene(seed: int):
    return get_preset(PRESET).image_processor()(render_scene(seed, (SIZE, SIZE))[0], return_tensors="np").pixel_values


def megabytes(file: Path) -> float:
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else None
    return round(sum(each.stat().st_size for each in (file, weights) if each) / 1e6, 1)


def memory_mb(folder: Path, way: str) -> float | None:
    """The memory of a fresh process, loaded and run, beyond the libraries."""
    if way == "PyTorch":
        return memory_of([str(folder / "model")], (1, 3, SIZE, SIZE))[0]
    file, format, precision = WAYS[way]
    links = folder / f"of {way}"  # as `offseg export` lays it out
    links.mkdir(exist_ok=True)
    names = {"onnx": ["model.onnx"], "openvino": ["model.xml", "model.bin"]}.get(format, ["model.pt2"])
    for name in names:
        (links / name).unlink(missing_ok=True)
        (links / name).hardlink_to((folder / file).with_suffix(Path(name).suffix))
    labels = {index: str(index) for index in range(NUM_LABELS)}
    config = ExportedConfig(format=format, precision=precision, size=[SIZE, SIZE], id2label=labels)
    config.architectures = ["ExportedForSemanticSegmentation"]
    config.save_pretrained(links)
    SegformerImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(links)
    return memory_of([str(links)], (1, 3, SIZE, SIZE))[0]


@torch.inference_mode()
def timed(runs: dict, count: int) -> dict:
    """Run everything in turns."""
    images = torch.randn(1, 3, SIZE, SIZE).numpy()
    clocks = {key: ([], []) for key in runs}
    for index in range(count + 2):
        for key, run in runs.items():
            time.sleep(0.02)  # threads of the one before spin for so long
            start = time.perf_counter(), time.process_time()
            run(images)
            if index >= 2:
                for values, before, now in zip(clocks[key], start, (time.perf_counter(), time.process_time())):
                    values.append(1000 * (now - before))
    return {
        key: {
            "ms": round(statistics.median(wall), 1),
            "min_ms": round(min(wall), 1),
            "cpu_ms": round(statistics.median(processor), 1),
        }
        for key, (wall, processor) in clocks.items()
    }


if __name__ == "__main__":
    main()
