"""`push_model`: a model and its card in one commit, what is there already not again, and nobody's work lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from offseg_hf import __version__
from offseg_hf.hub.push import model_files
from tests.local_hub import MODES
from tests.local_hub.fixtures import STRANGER_TOKEN
from tests.small_model import save_small_model


pytest_plugins = ["tests.local_hub.fixtures"]

PUSHES = """
import json
import sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from offseg_hf.hub.push import push_model

folder, api, seen = Path(sys.argv[1]), HfApi(), {}


def push(name, repository, **options):
    try:
        upload = push_model(folder, repository, **options)
        changes = upload.changes
        result = {"add": sorted(changes.add), "delete": changes.delete, "kept": changes.kept, "url": upload.url}
    except ValueError as error:
        result = {"error": str(error)}
    full = repository if "/" in repository else f"tester/{repository}"
    titles = [commit.title for commit in api.list_repo_commits(full)]
    seen[name] = result | {"titles": titles, "files": api.list_repo_files(full)}


def someone(name, **files):
    add = [CommitOperationAdd(path.replace("_", "."), content.encode()) for path, content in files.items()]
    api.create_commit(name, add, commit_message="A better card")


push("first", "model", private=True)
seen["private"] = api.model_info("tester/model").private
push("second", "tester/model")
push("not private", "tester/model", private=True)

weights = (folder / "model.safetensors").read_bytes()
(folder / "model.safetensors").write_bytes(weights[:-4] + bytes(4))
(folder / "layers.py").rename(folder / "own_layers.py")
for file in folder.glob("*.py"):
    file.write_text(file.read_text().replace("from .layers", "from .own_layers"))
push("changed", "tester/model")

card = api.hf_hub_download("tester/model", "README.md")
someone("tester/model", README_md=Path(card).read_text() + "By hand.", notes_txt="mine")
(folder / "model.safetensors").write_bytes(weights)
push("card changed", "tester/model")
push("card changed, again", "tester/model")
push("card overwritten", "tester/model", overwrite=True)

someone("tester/model", config_json="{}")
push("config changed", "tester/model")
push("config overwritten", "tester/model", overwrite=True)

api.create_repo("tester/public")
push("public", "tester/public", private=True)
api.upload_file(repo_id="tester/public", path_or_fileobj=b"{}", path_in_repo="config.json")
push("foreign", "tester/public")
(folder / "README.md").write_text("---\\ntags: [own]\\n---\\n# My own card\\n")
push("own card", "tester/other")
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model's folder with more in it than the model."""
    folder = save_small_model(tmp_path_factory.mktemp("run") / "best")
    torch.save({"progress": {"iteration": 3}}, folder / "training_state.pt")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def seen(local_hub, folder, tmp_path_factory) -> dict:
    work = shutil.copytree(folder, tmp_path_factory.mktemp("work") / "best")
    return json.loads(local_hub.run(PUSHES, work).splitlines()[-1])


def test_only_the_model_goes_up(local_hub, seen, folder):
    first = seen["first"]
    code = {path.name for path in folder.glob("*.py")}
    assert {"modeling_offseg.py", "image_processing_offseg.py", "offset_learning.py"} < code
    model = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert set(first["add"]) == code | model
    assert set(first["files"]) == set(first["add"]) | {".gitattributes"}
    assert first["titles"] == [f"Push a model with offseg-hf {__version__}", "initial commit"]
    assert first["url"] == f"{local_hub.endpoint}/tester/model" and seen["private"]


def test_the_second_time_nothing_happens(seen):
    for name in ("second", "not private"):
        assert seen[name]["add"] == seen[name]["delete"] == []
        assert seen[name]["titles"] == seen["first"]["titles"]


def test_only_what_changed_goes_up_and_code_of_before_goes(seen):
    changed = seen["changed"]
    assert {"model.safetensors", "own_layers.py", "encoder_efficientformer_v2.py"} <= set(changed["add"])
    assert "config.json" not in changed["add"] and "image_processing_offseg.py" not in changed["add"]
    assert changed["delete"] == ["layers.py"]
    assert len(changed["titles"]) == 3


def test_a_card_changed_by_someone_is_kept(seen):
    changed = seen["card changed"]
    assert changed["add"] == ["model.safetensors"] and changed["delete"] == []
    assert changed["kept"] == ["README.md"] and "notes.txt" in changed["files"]
    again = seen["card changed, again"]
    assert again["add"] == [] and again["kept"] == ["README.md"] and again["titles"] == changed["titles"]
    overwritten = seen["card overwritten"]
    assert overwritten["add"] == ["README.md"] and "notes.txt" in overwritten["files"]


def test_a_model_changed_by_someone_is_not_replaced_unasked(local_hub, seen):
    assert seen["config changed"]["error"] == (
        "expected tester/model as offseg-hf left it, got other contents of config.json: see "
        f"{local_hub.endpoint}/tester/model/commits/main; --overwrite replaces them"
    )
    assert seen["config overwritten"]["add"] == ["config.json"]
    assert "got other contents of config.json" in seen["foreign"]["error"]
    assert seen["foreign"]["files"] == [".gitattributes", "config.json"]


def test_what_should_be_private_does_not_go_to_a_public_repository(seen):
    assert seen["public"]["error"].startswith("expected a private repository, got tester/public, which is public")
    assert seen["public"]["files"] == [".gitattributes"]


def test_cards(local_hub, seen):
    """One is made; one that lies in the folder is the user's own."""

    def card(name: str) -> ModelCard:
        files = local_hub.hub.repository("models", name, local_hub.token).resolve("main").files
        return ModelCard(local_hub.hub.blobs.read(files["README.md"]).decode())

    made = card("tester/model")
    assert made.data.pipeline_tag == "image-segmentation" and "tester/model" in made.text
    assert "README.md" in seen["own card"]["add"] and card("tester/other").data.tags == ["own"]


COMMAND = """
import sys
from offseg_hf.cli import app
app(["push", *sys.argv[1:]], prog_name="offseg")
"""
LOAD = """
import sys
sys.modules["offseg_hf"] = None  # importing it fails
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained("tester/command", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("tester/command", trust_remote_code=True)
print(type(model).__module__.split(".")[0], model.config.id2label[0])
"""


def test_command(local_hub, folder):
    """What it pushes is a model for everyone."""
    printed = local_hub.run(COMMAND, folder, "tester/command", **MODES["xet"])
    assert printed.startswith(f"{local_hub.endpoint}/tester/command: ") and " files, " in printed
    assert local_hub.run(COMMAND, folder, "tester/command").endswith("tester/command: all was there\n")
    assert local_hub.run(LOAD, HF_TOKEN=STRANGER_TOKEN) == "transformers_modules sky\n"


def test_what_is_missing_is_named(folder, tmp_path):
    whole = shutil.copytree(folder, tmp_path / "run" / "best")
    with pytest.raises(
        FileNotFoundError, match="without config.json, preprocessor_config.json, model.safetensors"
    ) as error:
        model_files(whole.parent)
    assert f"did you mean {whole}?" in str(error.value)
    with pytest.raises(FileNotFoundError, match="expected the folder of a model, got no folder"):
        model_files(tmp_path / "nowhere")
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "offset_learning.py"):
        (whole / name).rename(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=f"got one without {name}: ") as error:
            model_files(whole)
        assert "save" in str(error.value)
        (tmp_path / name).rename(whole / name)


def test_shards_and_models_without_code_of_their_own(tmp_path):
    """As `save_pretrained` writes large models of transformers."""
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {"a": shards[0], "b": shards[1], "c": shards[1]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for shard in shards:
        (tmp_path / shard).write_bytes(b"")
    (tmp_path / "train.py").write_text("")
    names = {"config.json", "preprocessor_config.json", "model.safetensors.index.json", *shards}
    assert set(model_files(tmp_path)) == names
