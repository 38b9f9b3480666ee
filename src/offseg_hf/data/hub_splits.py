"""One split of a data set on the Hub without the others, with and without a connection.

`load_dataset(name, split=...)` downloads all splits, whichever it is asked for, unless it is told the split's files.
What it was told that way it does not find again without a connection, though the client below it has kept the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offseg_hf.data.layouts import find_split


if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict


def load_from_hub(
    name: str, split: str | None, config_name: str | None, revision: str | None, streaming: bool
) -> DatasetDict | IterableDatasetDict:
    """Load the splits of a data set on the Hub, of which one is downloaded, if it is named."""
    from datasets import load_dataset, load_dataset_builder

    try:
        builder = load_dataset_builder(name, config_name, revision=revision)
    except ValueError as error:  # no connection, and not prepared as a whole before
        if "Couldn't find cache" not in str(error):
            raise
        return _load_kept_files(name, split, config_name, revision)
    files = builder.config.data_files
    if not files and revision is not None:  # no connection; what is prepared may be of another revision
        return _load_kept_files(name, split, config_name, revision)
    if streaming:
        return builder.as_streaming_dataset()
    if not files or split is None:
        builder.download_and_prepare()
        return builder.as_dataset()
    key = find_split(name, files, split)
    return load_dataset(
        name, config_name, revision=revision, data_files={key: files[key]}, features=builder.info.features
    )


def _load_kept_files(name: str, split: str | None, config_name: str | None, revision: str | None) -> DatasetDict:
    """Load parquet files that were downloaded before; LocalEntryNotFoundError if a split is not whole."""
    from datasets import DatasetDict, load_dataset
    from datasets.data_files import sanitize_patterns
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    card = DatasetCard.load(folder / "README.md").data
    configurations = MetadataConfigs.from_dataset_card_data(card)
    config_name = config_name or configurations.get_default_config_name() or "default"
    patterns = sanitize_patterns(configurations.get(config_name, {}).get("data_files", {}))
    info = DatasetInfosDict.from_dataset_card_data(card).get(config_name)
    data: dict[str, Any] = {}
    for key in patterns if split is None else [find_split(name, patterns, split)]:
        files = sorted(str(path) for pattern in patterns[key] for path in folder.glob(pattern))
        if files:
            data |= load_dataset("parquet", data_files={key: files}, features=info and info.features)
        if not info or len(data.get(key, ())) != info.splits[key].num_examples:
            raise LocalEntryNotFoundError(f"{key} of {name} ({config_name}) was not downloaded as a whole before")
    return DatasetDict(data)


@contextmanager
def known_configuration(source: str, config_name: str | None) -> Iterator[None]:
    """Tell which configurations there are, if one has to be named, or there is none of that name."""
    try:
        yield
    except ValueError as error:
        known = re.search(r"(?:available configs: |not found\. Available: )\[(.*?)\]", str(error))
        if known is None:
            raise
        names = ", ".join(sorted(known[1].replace("'", "").split(", ")))
        raise ValueError(
            f"{source}: expected the name of one of its configurations, {names}, as config_name, got {config_name}"
        ) from None
