"""What a GPU run is to answer, in ten minutes, as one JSON report: nobody has tried this package on CUDA yet.

    python scripts/benchmark/gpu.py --output gpu.json
    python scripts/benchmark/gpu.py --output cpu.json --device cpu --quick   # the same questions of a CPU, smaller

In this order, so that what matters most is there when time is short:

1. goldens: is it the same function? Differences to the official outputs (tests/parity/goldens) and equal labels, in
   float32 with and without TF32, bfloat16 and float16, as loaded and fused.
2. inference: milliseconds and memory, as loaded, fused, channels last, compiled, with CUDA graphs; OffSeg T, B, L.
3. arithmetic: what the code does on every device, beside its alternatives: weighted gathers by `embedding_bag` or as
   products, attention with chunks of queries or without, label maps by cells or by upsampling all classes.
4. training: images per second and memory of a step, in float32 and bfloat16.
5. several GPUs: a training of some iterations by `accelerate launch`, over NCCL.

A part that fails is reported with its error, and the others are run. Every figure is a median, after a warm-up, with
the device synchronized before and after. Please send the report to the issues of the repository.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from measure import machine


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation  # noqa: E402
from offseg_hf.data.scenes.folder import write_scenes  # noqa: E402
from offseg_hf.models import encoder_efficientformer_v2 as encoder  # noqa: E402
from offseg_hf.models.image_operations import upsampled, upsampled_argmax  # noqa: E402
from offseg_hf.models.layers import weighted_gather  # noqa: E402


class Bench:
    """A device, and how time and memory are measured on it."""

    def __init__(self, device: str, quick: bool):
        self.device, self.quick = torch.device(device), quick
        self.is_cuda = self.device.type == "cuda"
        self.repeats = 2 if quick else 20

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def measure(self, function: Callable[[], object]) -> dict[str, float]:
        """Return the median milliseconds of a function, and the megabytes it needs at most."""
        for _ in range(1 if self.quick else 3):
            function()
        self.synchronize()
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated() if self.is_cuda else 0
        times = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            function()
            self.synchronize()
            times.append(time.perf_counter() - start)
        result = {"ms": 1000 * statistics.median(times)}
        if self.is_cuda:
            result["MB"] = (torch.cuda.max_memory_allocated() - base) / 2**20
        return result


# -- the parts --------------------------------------------------------------------------------------------------------


def environment(bench: Bench) -> dict[str, Any]:
    """Say what was measured on."""
    found = {"machine": machine(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if bench.is_cuda:
        found["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["capability"] = torch.cuda.get_device_capability()
        found["bfloat16"] = torch.cuda.is_bf16_supported()
    return found


def goldens(bench: Bench) -> dict[str, Any]:
    """Compare logits and labels with the official code's."""
    from tests.parity.conftest import converted
    from tests.parity.fill import image
    from tests.parity.test_goldens import SEMANTIC, load

    precisions = {
        "float32": nullcontext,
        "float32, TF32": tf32,
        "bfloat16": lambda: torch.autocast(bench.device.type, torch.bfloat16),
        "float16": lambda: torch.autocast(bench.device.type, torch.float16),
    }
    result = {}
    for name in SEMANTIC[:1] if bench.quick else SEMANTIC:
        golden, preset, size = load(name)
        pixels = torch.from_numpy(image(f"{preset}:{size[0]}x{size[1]}", (len(golden["argmax"]), 3, *size)))
        pixels = pixels.to(bench.device)
        model = converted(preset)
        for way, network in {"as loaded": model, "fused": model.fuse()}.items():
            network = network.to(bench.device)
            for precision, context in precisions.items():
                with torch.no_grad(), context():
                    logits = network(pixels).logits.float().cpu()
                step = -(-logits.shape[-1] // golden["logits"].shape[-1])
                difference = (logits[..., ::step, ::step] - torch.from_numpy(golden["logits"])).abs().max()
                equal = (logits.argmax(dim=1).numpy() == golden["argmax"]).mean()
                result[f"{name}, {way}, {precision}"] = {"difference": float(difference), "equal": float(equal)}
        model.cpu()
    return result


def inference(bench: Bench) -> dict[str, Any]:
    """Time the network as it can be run."""
    result = {}
    for size in "t" if bench.quick else "tbl":
        torch.manual_seed(0)
        model = OffSegForSemanticSegmentation(OffSegConfig.from_size(size, num_labels=150)).eval().to(bench.device)
        fused = model.fuse()
        for batch in (1,) if bench.quick else (1, 16):
            images = torch.randn(batch, 3, 512, 512, device=bench.device)
            if bench.quick:
                images = images[..., :128, :128].contiguous()
            ways = {
                "as loaded": (model, images),
                "fused": (fused, images),
                "fused, channels last": (fused, images.contiguous(memory_format=torch.channels_last)),
            }
            if not bench.quick:
                ways["fused, compiled"] = (torch.compile(fused), images)
                ways["fused, CUDA graphs"] = (torch.compile(fused, mode="reduce-overhead"), images)
            contexts: dict[str, AbstractContextManager] = {"float32": nullcontext(), "TF32": tf32()}
            contexts["bfloat16"] = torch.autocast(bench.device.type, torch.bfloat16)
            for way, (network, pixels) in ways.items():
                for precision, context in contexts.items():
                    label = f"OffSeg-{size.upper()}, batch {batch}, {way}, {precision}"
                    with torch.no_grad(), context:
                        result[label] = attempt(lambda: bench.measure(lambda: network(pixels)))
    return result


def arithmetic(bench: Bench) -> dict[str, Any]:
    """Time what the code does on every device beside what it could do instead."""
    result = {}
    pixels = 4096 if bench.quick else 256 * 256
    rows = torch.randn(pixels, 224, device=bench.device)
    indices = torch.randint(pixels, (pixels, 25), device=bench.device)
    weights = torch.rand(pixels, 25, device=bench.device)
    with torch.no_grad():
        result["gather of 25 neighbors, embedding_bag"] = bench.measure(
            lambda: weighted_gather(rows, indices, weights)
        )
        result["gather of 25 neighbors, product"] = attempt(
            lambda: bench.measure(lambda: (weights[:, None] @ rows[indices])[:, 0])
        )
        result["gather of 25 neighbors, sum of 25"] = bench.measure(
            lambda: sum(weights[:, index, None] * rows[indices[:, index]] for index in range(25))
        )
    torch.manual_seed(0)
    model = OffSegForSemanticSegmentation(OffSegConfig.from_size("t", num_labels=19)).eval().to(bench.device)
    side = 128 if bench.quick else 1024
    images = torch.randn(1, 3, side, side, device=bench.device)
    chosen = encoder.QUERIES_AT_A_TIME
    for queries in (chosen, 2**30):
        encoder.QUERIES_AT_A_TIME = queries
        label = f"OffSeg-T at {side}, attention with {'all' if queries > chosen else queries} queries at a time"
        with torch.no_grad():
            result[label] = attempt(lambda: bench.measure(lambda: model(images)))
    encoder.QUERIES_AT_A_TIME = chosen
    scores = F.interpolate(torch.randn(1, 150, 16, 21), size=(128, 171), mode="bicubic")[0].to(bench.device)
    size = (300, 400) if bench.quick else (3000, 4000)
    result["label map of 150 classes, by cells"] = bench.measure(lambda: upsampled_argmax(scores, size))
    result["label map of 150 classes, upsampled whole"] = attempt(
        lambda: bench.measure(lambda: upsampled(scores, size).argmax(dim=0))
    )
    return result


def training(bench: Bench) -> dict[str, Any]:
    """Time a step of OffSeg-T, as the official recipe has it, but for the data."""
    torch.manual_seed(0)
    batch, side = (2, 64) if bench.quick else (8, 512)
    model = OffSegForSemanticSegmentation(OffSegConfig.from_size("t", num_labels=150)).train().to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images = torch.randn(batch, 3, side, side, device=bench.device)
    labels = torch.randint(150, (batch, side, side), device=bench.device)

    def step(network: torch.nn.Module, context: AbstractContextManager) -> None:
        with context:
            loss = network(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    networks = {"as loaded": model} | ({} if bench.quick else {"compiled": torch.compile(model)})
    precisions = {
        "float32": nullcontext(),
        "TF32": tf32(),
        "bfloat16": torch.autocast(bench.device.type, torch.bfloat16),
    }
    result = {}
    for way, network in networks.items():
        for precision, context in precisions.items():
            measured = attempt(lambda: bench.measure(lambda: step(network, context)))
            if "ms" in measured:
                measured["images per second"] = 1000 * batch / measured["ms"]
            result[f"OffSeg-T, {batch} images of {side}, {way}, {precision}"] = measured
    return result


def several_devices(bench: Bench) -> dict[str, Any]:
    """Train for some iterations in two processes; report the log's last line."""
    if not bench.is_cuda or torch.cuda.device_count() < 2:
        return {"skipped": f"expected two CUDA devices, got {torch.cuda.device_count()}"}
    with tempfile.TemporaryDirectory() as folder:
        scenes, run = Path(folder, "scenes"), Path(folder, "run")
        write_scenes(scenes, train=64, val=8)
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
        recipe = ["offseg-t-ade", "--data", str(scenes), "--output", str(run)]
        settings = ["schedule.iterations=100", "training.batch_size=8", "augmentation.crop_size=[256,256]"]
        settings += ["model.pretrained=null", "training.mixed_precision=bf16"]
        subprocess.run([*launch, str(ROOT / "scripts" / "train.py"), *recipe, *settings], check=True)
        return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


PARTS = (environment, goldens, inference, arithmetic, training, several_devices)


class tf32(AbstractContextManager):
    """Products of float32 in TF32, as training is often run."""

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True

    def __exit__(self, *error: object) -> None:
        torch.set_float32_matmul_precision(self.before[0])
        torch.backends.cudnn.allow_tf32 = self.before[1]


def attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a measurement gives, or the error that it ends with."""
    try:
        return function()
    except Exception as error:  # of kernels, compilers and memory, which are what is asked about
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def main(
    output: Annotated[Path, typer.Option(help="The report.")],
    device: Annotated[str, typer.Option(help="As torch names it.")] = "cuda",
    quick: Annotated[bool, typer.Option(help="Small sizes and few repeats, to see that it runs.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Parts, by name.")] = None,
) -> None:
    """Answer the questions above, and write the report after each part."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter("this build of torch sees no CUDA device: --device cpu --quick tries it out")
    if unknown := set(only or ()) - {part.__name__ for part in PARTS}:
        raise typer.BadParameter(f"unknown {', '.join(unknown)}: expected {', '.join(p.__name__ for p in PARTS)}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bench, report = Bench(device, quick), {}
    for part in PARTS:
        if only and part.__name__ not in only:
            continue
        start = time.perf_counter()
        print(f"{part.__name__} ...", file=sys.stderr)
        report[part.__name__] = attempt(lambda part=part: part(bench)) | {"seconds": time.perf_counter() - start}
        whole = output.with_name(output.name + ".part")
        whole.write_text(json.dumps(report, indent=2, default=str) + "\n")
        os.replace(whole, output)
    print(f"written to {output}")


if __name__ == "__main__":
    typer.run(main)
