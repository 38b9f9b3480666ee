"""transformers' Trainer with FSDP2: two processes on the CPU train, evaluate, save, and go on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

from offseg_hf import OffSegImageProcessor, evaluation, load_segmentation_data
from offseg_hf.data.scenes.folder import write_scenes
from tests.processes import run_together
from tests.small_model import save_small_model


# accelerate 1.15 takes FSDP for GPUs only: `AcceleratorState` leaves the plugin out, without a word, if the processes
# are MULTI_CPU. Nothing else keeps it from working there.
SCRIPT = """
import sys
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSemanticSegmentation, Trainer, TrainingArguments
from offseg_hf import EvaluationSet, OffSegImageProcessor, TrainingSet, TrainingTransform, load_segmentation_data

folder, output, last = sys.argv[1:]
processor = OffSegImageProcessor.from_pretrained(f"{folder}/model")
validation = EvaluationSet(load_segmentation_data(f"{folder}/scenes", "val"), processor)
samples = TrainingSet(
    load_segmentation_data(f"{folder}/scenes", "train"), TrainingTransform(crop_size=(64, 64), scale=(96, 64))
)
arguments = TrainingArguments(
    output,
    max_steps=4,
    save_steps=2,
    eval_strategy="steps",
    eval_steps=2,
    per_device_train_batch_size=1,
    per_device_eval_batch_size=1,
    batch_eval_metrics=True,
    train_sampling_strategy="sequential",
    fsdp=True,
    fsdp_config={"reshard_after_forward": False},
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
arguments._setup_devices
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
trainer = Trainer(
    AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/model"),
    arguments,
    train_dataset=samples,
    eval_dataset=validation,
    compute_metrics=validation.compute_metrics,
    preprocess_logits_for_metrics=validation.preprocess_logits_for_metrics,
    processing_class=processor,
)
trainer.train(resume_from_checkpoint=last or None)
assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
weights = trainer.accelerator.get_state_dict(trainer.model)
if trainer.is_world_process_zero():
    torch.save(weights, f"{output}/weights.pt")
"""


@pytest.mark.slow
def test_fsdp2_on_the_cpu(tmp_path):
    save_small_model(tmp_path / "model", "segformer")
    write_scenes(tmp_path / "scenes", train=4, val=3, size=(96, 64))
    whole, second = tmp_path / "whole", tmp_path / "second"
    run_together(2, SCRIPT, tmp_path, whole, "")

    model = AutoModelForSemanticSegmentation.from_pretrained(whole / "checkpoint-4")
    assert_equal(model.state_dict(), torch.load(whole / "weights.pt"))
    processor = OffSegImageProcessor.from_pretrained(whole / "checkpoint-4")
    (scores,) = [entry for entry in history(whole) if entry["step"] == 4 and "eval_mIoU" in entry]
    result = evaluation.evaluate_model(model, processor, load_segmentation_data(tmp_path / "scenes", "val"))
    # Batch norms have seen other samples in the other process.
    assert scores["eval_mIoU"] == pytest.approx(result["mIoU"], abs=0.02)

    # The class that FSDP2 makes of the model's is not what its code is saved of.
    saved = json.loads((whole / "checkpoint-4" / "config.json").read_text())
    code = "modeling_offset_segformer.OffsetSegformerForSemanticSegmentation"
    assert saved["auto_map"]["AutoModelForSemanticSegmentation"] == code
    files = {path.name for path in (whole / "checkpoint-4").glob("*.py")}
    assert files == {path.name for path in (tmp_path / "model").glob("*.py")}

    run_together(2, SCRIPT, tmp_path, second, whole / "checkpoint-2")
    assert_equal(
        load_file(second / "checkpoint-4" / "model.safetensors"),
        load_file(whole / "checkpoint-4" / "model.safetensors"),
    )


def history(output: Path) -> list[dict]:
    return json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
