"""Pushing a data set of any kind as a parquet data set on the Hub, which every client of `datasets` reads."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from offseg_hf.data.classes_json import FILE_NAME, classes_json
from offseg_hf.data.dataset import label_set_of, load_data
from offseg_hf.data.label_sets import LabelSet
from offseg_hf.data.reading import PairReader
from offseg_hf.data.source import DataSource


if TYPE_CHECKING:
    from datasets import Dataset

CARD = """
# {title}

Semantic segmentation, {count} classes. `image` is the photo, `label` the map of class ids in 0..{last}; {ignore_index}
is no class. Names and colors are in `{file_name}`, in the order of the ids.

```python
from offseg_hf.data.dataset import load_segmentation_data

dataset = load_segmentation_data("{repository}")
```

| id | class |
|---:|:------|
{rows}
"""


def push_segmentation_data(
    source: DataSource | str | Path,
    repository: str,
    *,
    split: str | None = None,
    private: bool = False,
    max_shard_size: str = "500MB",
) -> str:
    """Upload images as they are and label maps as class ids, with `classes.json` and a card.

    `load_segmentation_data(repository)` gives the same samples, names and palette. The names are in `id2label.json`
    too, which transformers' run_semantic_segmentation.py downloads.

    Args:
        source: the data set, or only its folder or name on the Hub.
        repository: data set on the Hub, as user/name.
        split: only this one.
        private: create it as a private one.
        max_shard_size: of the parquet files.

    Returns:
        The URL of the data set.
    """
    from datasets import DatasetDict
    from huggingface_hub import CommitOperationAdd, HfApi

    data = load_data(DataSource.of(source), split)
    if not isinstance(data, dict):
        data = DatasetDict({str(data.split or "train"): data})
    classes = label_set_of(data)
    api = HfApi()
    with TemporaryDirectory(prefix="offseg-push-") as folder:
        plain = DatasetDict({name: _as_ids(part, name, Path(folder, f"{name}.arrow")) for name, part in data.items()})
        repository = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True).repo_id
        files = {
            FILE_NAME: classes_json(classes),
            "id2label.json": json.dumps(classes.id2label(), ensure_ascii=False, indent=2),  # transformers' examples'
        }
        api.create_commit(
            repository,
            [CommitOperationAdd(name, text.encode()) for name, text in files.items()],
            repo_type="dataset",
            commit_message="Classes",
        )
        plain.push_to_hub(repository, max_shard_size=max_shard_size)
    _push_card(repository, classes)
    return f"{api.endpoint}/datasets/{repository}"


def _as_ids(dataset: "Dataset", split: str, cache: Path) -> "Dataset":
    """Make ordinary images of ids of the label maps, in `cache`; images stay paths until they are packed."""
    from datasets import Features, Image

    from offseg_hf.data.label_image import encode_ids

    reader = PairReader(dataset, split)

    def convert(sample: dict, index: int) -> dict:
        _, label_map = reader.read(index, sample)  # what cannot be trained on is not sent either
        path, ids = sample["label"]["path"], encode_ids(label_map)
        return {"image": sample["image"], "label": {"bytes": ids, "path": path and f"{Path(path).stem}.png"}}

    return reader.rows.map(
        convert,
        with_indices=True,
        features=Features(image=Image(), label=Image()),
        cache_file_name=str(cache),
        writer_batch_size=100,
        desc="Label maps to ids",
    )


def _push_card(repository: str, labels: LabelSet) -> None:
    """Write about the data set below the metadata that `push_to_hub` wrote."""
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(repository)
    card.data.task_categories = ["image-segmentation"]
    card.data.task_ids = ["semantic-segmentation"]
    card.data.pretty_name = labels.title
    card.text = CARD.format(
        title=labels.title,
        count=len(labels),
        last=len(labels) - 1,
        ignore_index=labels.ignore_index,
        file_name=FILE_NAME,
        repository=json.dumps(repository)[1:-1],
        rows="\n".join(f"| {index} | {name} |" for index, name in enumerate(labels.names)),
    )
    card.push_to_hub(repository, repo_type="dataset", commit_message="Card")
