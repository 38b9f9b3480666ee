"""Trainer publishes what it trains: a folder that the Auto classes take, with its code."""

import json

from offseg_hf.data.scenes.folder import write_scenes
from tests.small_model import save_small_model


pytest_plugins = ["tests.local_hub.fixtures"]

SCRIPT = """
import json
import sys
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments
from offseg_hf import EvaluationSet, OffSegImageProcessor, load_segmentation_data
from transformers import AutoModelForSemanticSegmentation

folder = sys.argv[1]
processor = OffSegImageProcessor.from_pretrained(f"{folder}/model")
validation = EvaluationSet(load_segmentation_data(f"{folder}/scenes", "val"), processor)
trainer = Trainer(
    AutoModelForSemanticSegmentation.from_pretrained(f"{folder}/model"),
    TrainingArguments(
        f"{folder}/output", hub_model_id="tester/trained", per_device_eval_batch_size=1, use_cpu=True, report_to="none"
    ),
    eval_dataset=validation,
    compute_metrics=validation.compute_metrics,
    preprocess_logits_for_metrics=validation.preprocess_logits_for_metrics,
    processing_class=processor,
)
trainer.evaluate()
trainer.push_to_hub()
loaded = AutoModelForSemanticSegmentation.from_pretrained("tester/trained")
assert loaded.num_parameters() == trainer.model.num_parameters()
print(json.dumps(HfApi().list_repo_files("tester/trained")))
"""


def test_push_to_hub(local_hub, tmp_path):
    save_small_model(tmp_path / "model", "segformer")
    write_scenes(tmp_path / "scenes", train=0, val=1, size=(64, 64))
    process = local_hub.clients.run(SCRIPT, tmp_path)
    assert process.returncode == 0, process.stderr
    files = set(json.loads(process.stdout.splitlines()[-1]))
    code = {path.name for path in (tmp_path / "model").glob("*.py")}
    assert files >= {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} | code
