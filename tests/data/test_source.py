"""A source that is none is told in a line: what was looked for, what is there, and what was meant."""

import json
import os
import sys
from pathlib import Path

import pytest

from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.data.source import source_folder
from tests.data import trees
from tests.processes import run_python
from tests.small_model import save_small_model
from tests.training.tiny import RECIPE


pytest_plugins = ["tests.local_hub.fixtures"]

OFFSEG = Path(sys.executable).with_name("offseg")
ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to be in, with data in it: `data/plain` and an archive."""
    monkeypatch.chdir(tmp_path)
    trees.plain(tmp_path / "data" / "plain")
    (tmp_path / "data.zip").touch()
    return tmp_path


def message(source: str | Path, **arguments) -> str:
    with pytest.raises(ValueError) as error:
        load_segmentation_data(source, **arguments)
    assert error.value.__cause__ is None  # the Hub was not asked, or is not to blame
    return str(error.value)


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["data/plain", "./data/plain/", "~/data/plain", Path("data/plain")])
def test_a_folder_as_one_may_write_it(here, monkeypatch, source):
    monkeypatch.setenv("HOME", str(here))
    assert len(load_segmentation_data(source, "val")) == 2


def test_names_are_left_to_the_hub(here):
    assert source_folder("user/plain") is None and source_folder("plain") is None
    assert source_folder({"train": []}) is None  # a data set that is loaded already


@pytest.mark.parametrize(
    "source, meant",
    [
        ("./data/plian", "data/plain"),
        ("dta/plain/", "data/plain"),  # the rest of the path is right
        ("Data/plain/images", "data/plain/images"),
        ("~/data/plain2", "{home}/data/plain"),
        (Path("data", "plane"), "data/plain"),
    ],
)
def test_a_path_that_is_nearly_right(here, monkeypatch, source, meant):
    monkeypatch.setenv("HOME", str(here))
    assert message(source) == f"{source}: no such folder (did you mean {meant.format(home=here)}?)"


@pytest.mark.parametrize("source", ["/nothing/at/all", "a/path/of/four", "https://example.org/data.zip", "my photos"])
def test_a_path_of_which_nothing_is_right(here, source):
    assert message(source).startswith(f"{source}: no such folder, in ")
    assert message(source).endswith("; expected a folder, or the name of a data set on the Hub (user/name)")


def test_what_is_no_folder(here):
    assert message("data.zip").startswith("data.zip: expected a folder, or the name of a data set on the Hub")
    assert "got a file; give the folder it is in, or unpack it first" in message("data.zip")
    assert message("") == "expected a folder, or the name of a data set on the Hub (user/name), got nothing"


def test_a_folder_next_to_the_right_one(here):
    for layout, (_, write) in trees.BENCHMARKS.items():
        write(here / layout / "inside")
        assert message(Path(layout)).endswith(f"(did you mean {layout}/inside?)")
    found = message("data/plain/images")
    assert found.endswith("or parquet files; found train/, val/ (did you mean data/plain?)")
    expected = "leftImg8bit/ and gtFine/ (Cityscapes), JPEGImages/ and SegmentationClassContext/ (Pascal Context)"
    assert expected in found


def test_images_and_masks_without_classes(here):
    (here / "data" / "plain" / "classes.json").unlink()
    expected = "data/plain: expected a classes.json beside images/ and masks/, found images/, masks/; write one"
    assert message("./data/plain").startswith(expected)


def test_a_broken_parquet_file_is_named(here):
    (here / "parquet").mkdir()
    (here / "parquet" / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="^parquet/train.parquet: expected a parquet file, got one that cannot be"):
        load_segmentation_data("parquet")


def test_where_it_is_does_not_change(here, monkeypatch):
    """A relative source is the same after one has gone elsewhere."""
    load_segmentation_data("data/plain").save_to_disk("saved")
    folders = [load_segmentation_data(name, "train") for name in ("data/plain", "saved")]
    monkeypatch.chdir("/")
    assert [len({sample["image"].size for sample in data}) for data in folders] == [1, 1]


def test_classes_at_home(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "data" / "plain" / "classes.json").rename(here / "other.json")
    data = load_segmentation_data("data/plain", "train", labels="~/other.json")
    assert data.features["label"].names == ["sky", "ground", "tree"]
    for labels in (["sky", "road"], {"0": "sky"}, 3):
        assert message("data/plain", labels=labels).startswith("expected labels ade, ")


@pytest.mark.parametrize(
    "folder, files",
    [
        ("par[1]q*t", ("train-0.parquet", "val-0.parquet")),
        ("in any case", ("Train.parquet", "VALID.parquet")),
        ("folders", ("Training/0.parquet", "Val/0.parquet")),
        ("[0]", ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet")),
    ],
)
def test_parquet_files_of_any_name(here, folder, files):
    data = load_segmentation_data("data/plain")
    for split, file in zip(("train", "validation"), files):
        (here / folder / file).parent.mkdir(parents=True, exist_ok=True)
        data[split].to_parquet(here / folder / file)
    (here / folder / ".cache").mkdir()
    (here / folder / ".cache" / "test.parquet").write_text("of another program")
    loaded = load_segmentation_data(here / folder)
    assert {split: len(part) for split, part in loaded.items()} == {"train": 3, "validation": 2}
    assert len(list(load_segmentation_data(here / folder, "val", streaming=True))) == 2


@pytest.mark.parametrize(
    "file, told",
    [
        ("valset.parquet", "looks like a split, expected train, val or test"),
        ("train_val.parquet", "the name of one split"),
    ],
)
def test_parquet_files_of_doubtful_splits(here, file, told):
    (here / "tables").mkdir()
    load_segmentation_data("data/plain", "train").to_parquet(here / "tables" / file)
    assert message("tables").startswith(f"tables/{file}: ") and told in message("tables")


# -- what users type -------------------------------------------------------------------------------------------------


def error_of(*arguments: str | Path) -> str:
    main = "from offseg_command import main; main()"
    result = run_python(main, *arguments, name="offseg", cwd=Path.cwd(), check=False, COLUMNS="200", NO_COLOR="1")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


def test_commands(here):
    """Of a name that the Hub might know too: the folder that was meant comes first, and the Hub's answer after it."""
    (here / "tiny.yaml").write_text(RECIPE)
    model = save_small_model(here / "model")
    expected = "data/plian: no such folder (did you mean data/plain?), and Couldn't reach 'data/plian' on the Hub"
    for command in (
        ("data", "check", "data/plian"),
        ("evaluate", "--model", model, "--dataset", "data/plian"),
        ("train", "--config", "tiny.yaml", "data.source=data/plian", "--output", here / "run"),
    ):
        assert error_of(*command).startswith(expected)


# -- the Hub ---------------------------------------------------------------------------------------------------------

FROM_THE_HUB = """
import json
import sys
from huggingface_hub import HfApi
from offseg_hf.data.dataset import load_segmentation_data

api = HfApi()
for name, file in {"script": "script.py", "empty": "notes.md", "private": "data.csv"}.items():
    api.create_repo(f"tester/{name}", repo_type="dataset", private=name == "private")
    api.upload_file(path_or_fileobj=b"a", path_in_repo=file, repo_id=f"tester/{name}", repo_type="dataset")

seen = {}
for name in ("tester/script", "tester/empty", "tester/nothing", "stranger/private"):
    try:
        load_segmentation_data(name)
    except ValueError as error:
        seen[name] = [str(error), type(error.__cause__).__name__]
print(json.dumps(seen))
"""


def test_data_sets_that_cannot_be_had(local_hub):
    """The client's error is the cause, of which `offseg_hf.utils.hub_errors` tells what to do."""
    seen = json.loads(local_hub.run(FROM_THE_HUB).splitlines()[-1])
    assert seen["tester/script"][0].startswith("tester/script: its data comes by a script, which `datasets` does not")
    assert seen["tester/empty"][0].startswith("tester/empty: expected a data set of parquet files or images on the")
    for name in ("tester/nothing", "stranger/private"):
        text, cause = seen[name]
        assert text.startswith(f"{name}: no such folder, and Dataset '{name}' doesn't exist on the Hub or cannot be")
        assert cause == "DatasetNotFoundError"
