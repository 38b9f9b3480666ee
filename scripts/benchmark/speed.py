"""OffSeg beside the arithmetic of the official code (tests/oracle.py), on the CPU; `offseg benchmark` has the rest.

    python scripts/benchmark/speed.py                  # everything, as the table of docs/speed.md; about 15 minutes
    python scripts/benchmark/speed.py --only offseg-t-512 --repeats 5

Times are medians of interleaved runs in one process per case, float32; memory is the growth of the resident set, in a
fresh process per number whose allocator returns what is freed.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer


sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from measure import in_fresh_process, interleaved_medians, machine, markdown_table, peak_memory

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation
from oracle import plain


CASES = {  # size of the model, classes, side of the image
    "offseg-t-512": ("t", 150, 512),
    "offseg-b-512": ("b", 150, 512),
    "offseg-l-512": ("l", 150, 512),
    "offseg-t-1024": ("t", 19, 1024),
}
REFERENCE, OURS, FUSED = "official arithmetic", "as loaded", "fused"


def build(case: str, variant: str) -> torch.nn.Module:
    torch.manual_seed(0)
    size, num_labels, _ = CASES[case]
    model = OffSegForSemanticSegmentation(OffSegConfig.from_size(size, num_labels=num_labels)).eval()
    return {REFERENCE: plain, OURS: lambda model: model, FUSED: lambda model: model.fuse()}[variant](model)


def run(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor | None = None) -> None:
    """A forward, or with labels a training step but for the optimizer's part."""
    if labels is None:
        with torch.no_grad():
            model(images)
    else:
        model.zero_grad()
        model(images, labels=labels).loss.backward()


def rows_of(case: str, variants: tuple[str, ...], repeats: int, training: bool = False) -> list[list]:
    """Measure a forward of an image, or a training step with two of 256, in every variant."""
    side = CASES[case][2]
    images = torch.randn(2, 3, 256, 256) if training else torch.randn(1, 3, side, side)
    labels = torch.randint(150, (2, 256, 256)) if training else None
    models = {variant: build(case, variant).train(training) for variant in variants}
    medians = interleaved_medians(
        {name: lambda m=model: run(m, images, labels) for name, model in models.items()}, repeats
    )
    memory = {name: measure_memory(case, name, training) for name in models}
    what = f"{case} training step, two images of 256" if training else case
    return [
        [
            f"{what}, {name}",
            f"{1000 * seconds:.0f}",
            f"{medians[REFERENCE] / seconds:.2f}",
            f"{memory[name] / 2**20:.0f}",
            f"{memory[REFERENCE] / memory[name]:.1f}",
        ]
        for name, seconds in medians.items()
    ]


def measure_memory(case: str, name: str, training: bool) -> int:
    return int(in_fresh_process(__file__, [case, name, training]))


def memory_of(case: str, variant: str, training: bool) -> int:
    """Peak activation memory, in bytes."""
    model, side = build(case, variant), CASES[case][2]
    if training:
        images, labels = torch.randn(2, 3, 256, 256), torch.randint(150, (2, 256, 256))
        return peak_memory(lambda: run(model.train(), images, labels))
    images = torch.randn(1, 3, side, side)
    return peak_memory(lambda: run(model, images))


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Cases, of {', '.join(CASES)}, training.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Prints a table of times, their ratios to the official arithmetic's, and peak activation memory."""
    torch.set_num_threads(threads)
    if measure is not None:
        print(memory_of(*json.loads(measure)))
        return
    names = only or [*CASES, "training"]
    if unknown := set(names) - {*CASES, "training"}:
        raise typer.BadParameter(f"unknown case {', '.join(unknown)}: expected {', '.join(CASES)} or training")
    print(machine(), file=sys.stderr)
    rows = []
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr)
        is_training = name == "training"
        case, variants = ("offseg-t-512", (REFERENCE, OURS)) if is_training else (name, (REFERENCE, OURS, FUSED))
        rows += rows_of(case, variants, repeats, is_training)
    print(markdown_table(["", "ms", "times faster", "memory, MB", "times smaller"], rows))
    print(f"\n{machine()}")


if __name__ == "__main__":
    typer.run(main)
