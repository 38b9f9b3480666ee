r"""Does offset learning help on these data? The same training with and without it, seed by seed, and what comes out.

python scripts/ablation.py --config model_cards/results/camvid/offseg-t.yaml --seeds 0 1 2 --split test --jobs 2 \
    --output runs/camvid/offseg-t data.source=data/camvid

Every run is one `offseg train` and one `offseg evaluate` of its last checkpoint, in a process of its own. Interrupted,
the same command goes on. In the output come `results.json`, with all scores and curves, and `curves.png`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from threading import Event

from benchmark.measure import markdown_table
from matplotlib.figure import Figure

from offseg_hf.training.log import read_log
from offseg_hf.training.recipe import load_recipe
from offseg_hf.utils.yaml_files import dump_yaml
from offseg_hf.visualization import draw_plots


# The rows of the paper's Table 6 that differ in offset learning alone: which of its branches are on.
ARMS = {"both": (True, True), "class": (True, False), "feature": (False, True), "none": (False, False)}
BRANCHES = ("class", "feature")
SCORES = ("mIoU", "mAcc", "aAcc")
# The process of a run: some `offseg` commands, of which those after one that fails are left out.
COMMANDS = """
import json
import sys

import offseg_command  # as the command does, so that torch is imported once it is needed
from offseg_hf.cli import main

for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as end:
        if end.code:
            raise
"""


def main() -> None:
    """Do all runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a recipe: a file, or the name of a preset")
    parser.add_argument("--output", required=True, type=Path, help="folder for runs and results")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["both", "none"], help="the last is compared with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", default="validation", help="to evaluate the last checkpoints on")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("settings", nargs="*", help="key=value of the recipe")
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.config, arguments.settings)
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
        run_all(arguments, recipe.data.source)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    results = collect(arguments.output, arguments.arms, arguments.seeds)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw_results(results).savefig(arguments.output / "curves.png")
    print(table(results), class_table(results), sep="\n\n")


def run_all(arguments: argparse.Namespace, source: str) -> None:
    """Do all runs, some at a time; after one that fails, no other begins."""
    runs = [(arm, seed) for seed in arguments.seeds for arm in arguments.arms]  # whole pairs come first
    failed = Event()

    def run(arm: str, seed: int) -> None:
        if failed.is_set():
            return
        try:
            run_once(arguments, source, arm, seed)
        except BaseException:
            failed.set()  # before this thread takes the next run
            raise

    with ThreadPoolExecutor(arguments.jobs) as pool:
        try:
            for future in [pool.submit(run, *pair) for pair in runs]:
                future.result()
        except BaseException:
            failed.set()  # or interrupted; what has begun ends by itself: it failed, or got the signal too
            raise


def run_once(arguments: argparse.Namespace, source: str, arm: str, seed: int) -> None:
    """Train and evaluate, unless that is done; raises RuntimeError if either fails."""
    folder = run_folder(arguments.output, arm, seed)
    report = folder / "evaluation.json"
    if report.exists():
        return
    switches = {f"use_{branch}_offset": on for branch, on in zip(BRANCHES, ARMS[arm], strict=True)}
    # What an arm has no use for, such as optimizer.offset_multiplier, is left out of what it inherits.
    recipe = {"inherit": "../recipe.yaml", "model": {"config": switches}, "training": {"seed": seed}}
    train = ("train", "--config", folder / "arm.yaml", "--output", folder, "--resume", "auto")
    evaluate = ("evaluate", "--model", folder / "last", "--dataset", source, "--split", arguments.split)
    commands = [list(map(str, command)) for command in (train, (*evaluate, "--json", report))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arm.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs))} | os.environ
    output = folder / "output.txt"
    print(f"{arm}, seed {seed}: output in {output}", flush=True)
    with open(output, "w", encoding="utf-8") as file:
        program = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
        done = subprocess.run(program, env=environment, stdout=file, stderr=file)
    if done.returncode:
        last_line = output.read_text(encoding="utf-8").strip().rpartition("\n")[2]
        raise RuntimeError(f"{arm}, seed {seed} failed: {last_line} (see {output})")


def run_folder(output: Path, arm: str, seed: int) -> Path:
    """Return the folder of a run."""
    return output / f"{arm}-{seed}"


def collect(output: Path, arms: Iterable[str], seeds: Iterable[int]) -> dict:
    """Collect all that the runs have measured: scores of the last checkpoints, and curves of the trainings."""
    runs, report = [], {}
    for arm in arms:
        for seed in seeds:
            folder = run_folder(output, arm, seed)
            report = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
            lines = read_log(folder / "log.jsonl")
            runs.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "parameters": report["model"]["num_parameters"],
                    **{name: report["metrics"][name] for name in SCORES},
                    "IoU": {row["name"]: row["IoU"] for row in report["classes"]},
                    "loss": [[line["iteration"], round(line["loss"], 4)] for line in lines if "loss" in line],
                    "curve": [[line["iteration"], round(line["mIoU"], 4)] for line in lines if "mIoU" in line],
                }
            )
    data = {name: report["dataset"][name] for name in ("title", "split", "num_images", "num_classes")}
    environment = {name: report["environment"][name] for name in ("offseg_hf", "torch", "python", "device")}
    return {"data": data, "environment": environment, "runs": runs}


def draw_results(results: dict) -> Figure:
    """Training loss above mIoU by iteration: every seed, and the mean of each arm."""
    arms = list(dict.fromkeys(run["arm"] for run in results["runs"]))
    titles = {"loss": "training loss", "curve": f"mIoU on {results['data']['title']}, {results['data']['split']}"}
    return draw_plots(
        {
            title: {arm: [run[key] for run in results["runs"] if run["arm"] == arm] for arm in arms}
            for key, title in titles.items()
        }
    )


def table(results: dict) -> str:
    """Write, in Markdown, each arm's mIoU in % by seed, its mean and deviation, and its difference from the last."""
    by_arm: dict[str, list[float]] = {}
    for run in results["runs"]:
        by_arm.setdefault(run["arm"], []).append(100 * run["mIoU"])
    seeds = list(dict.fromkeys(run["seed"] for run in results["runs"]))
    *_, reference = by_arm.values()
    rows = []
    for arm, values in by_arm.items():
        differences = [value - other for value, other in zip(values, reference, strict=True)]
        difference = "" if values is reference else spread(differences, "+.2f")
        rows.append([arm, *(f"{value:.2f}" for value in values), spread(values, ".2f"), difference])
    return markdown_table(["branches", *(f"seed {seed}" for seed in seeds), "mean", "difference"], rows)


def class_table(results: dict) -> str:
    """Write, in Markdown, the mean IoU in % of each class that occurs, by arm, and differences from the last."""
    by_arm: dict[str, list[dict[str, float | None]]] = {}
    for run in results["runs"]:
        by_arm.setdefault(run["arm"], []).append(run["IoU"])
    *others, reference = by_arm
    header = ["class", *by_arm, *(f"{arm} - {reference}" for arm in others)]
    rows = []
    names = [name for name in by_arm[reference][0] if all(run["IoU"][name] is not None for run in results["runs"])]
    for name in names:
        values = {arm: [100 * run[name] for run in runs] for arm, runs in by_arm.items()}
        differences = [[a - b for a, b in zip(values[arm], values[reference], strict=True)] for arm in others]
        means = [f"{mean(values[arm]):.1f}" for arm in by_arm]
        rows.append([name, *means, *(spread(difference, "+.1f") for difference in differences)])
    return markdown_table(header, rows)


def spread(values: list[float], form: str) -> str:
    """Write the mean and, of several values, standard deviation (of the sample)."""
    digits = form.lstrip("+")
    deviation = f" ± {stdev(values):{digits}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{deviation}"


if __name__ == "__main__":
    main()
