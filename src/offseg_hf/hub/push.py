"""One's own model to the Hub: a folder that `save_pretrained` or a training wrote, with its code and a card."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_imports

from offseg_hf.hub.repository import CARD, Changes, commit, find_changes, read_state, require_writer
from offseg_hf.hub.space.files import space_files
from offseg_hf.hub.training_card import ADAPTER, ADAPTER_FILES, training_card_files


CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
SHARDS = "model.safetensors.index.json"


@dataclass(frozen=True)
class Upload:
    """Say what went up: nothing, if all was there. `url` is the repository's page."""

    repository: str
    url: str
    changes: Changes


def push_model(folder: str | Path, repository: str, *, private: bool = False, overwrite: bool = False) -> Upload:
    """Upload the model in `folder` to a repository, which is made if need be: config, weights, processor, code, card.

    With them go adapters that a training put there, but nothing else, the state of the training least of all. The card
    is made from the training's recipe, log and environment beside the folder; a README.md in the folder takes its
    place. All of it is one commit, or none if the Hub has it already.

    Args:
        folder: The model, as `save_pretrained` or a training wrote it.
        repository: user/name, or a name among one's own.
        private: Make it a private one.
        overwrite: Replace what others have changed there.

    Raises:
        FileNotFoundError: For a folder that is no whole model.
        ValueError: For a repository that is not to be written so; besides, what huggingface_hub raises.
    """
    folder = Path(folder)
    files: dict[str, Path | bytes] = dict(model_files(folder))
    api = HfApi()
    repository = writable_name(api, repository)
    card = training_card_files(folder, repository)
    files |= {path: text.encode() if isinstance(text, str) else text for path, text in card.items()}
    if (folder / CARD).is_file():
        files[CARD] = folder / CARD
    state = read_state(api, repository)
    changes = find_changes(api, state, files, private=private, overwrite=overwrite)
    if not changes.is_empty:
        commit(api, state, changes, "Push a model", private=private)
    return Upload(repository, f"{api.endpoint}/{repository}", changes)


def push_space(folder: str | Path, repository: str, *, private: bool = False, overwrite: bool = False) -> Upload:
    """Upload a Gradio Space of the same name as a model's repository, which it shows; it is made if need be.

    Args:
        folder: The model, as `push_model` takes it.
        repository: user/name, of the model and of the Space.
        private: Make it a private one.
        overwrite: Replace what others have changed there.

    Raises:
        ValueError: For a Space that is not to be written so; besides, what huggingface_hub raises.
    """
    api = HfApi()
    state = read_state(api, repository, kind="space")
    files = space_files(Path(folder), repository, api.endpoint)
    changes = find_changes(api, state, files, private=private, overwrite=overwrite)
    if not changes.is_empty:
        commit(api, state, changes, "Show a model", private=private)
    return Upload(repository, f"{api.endpoint}/{state.place}", changes)


def writable_name(api: HfApi, repository: str) -> str:
    """Return the name with its namespace.

    Raises:
        ValueError: Where the user may not write there; besides, what huggingface_hub raises.
    """
    validate_repo_id(repository)
    namespace, _, name = repository.rpartition("/")
    return f"{require_writer(api, namespace or None)}/{name}"


def model_files(folder: Path) -> dict[str, Path]:
    """Return the files of the model in a folder, by name.

    Raises:
        FileNotFoundError: Where one is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of a model, got no folder")
    names = [CONFIG, PROCESSOR, *_weights(folder), *(ADAPTER_FILES if (folder / ADAPTER).is_dir() else ())]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        models = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG}"))]
        better = "the model and its image processor are written by `save_pretrained`"
        if models:
            better = f"did you mean {' or '.join(str(folder / name) for name in models)}?"
        raise FileNotFoundError(f"{folder}: expected a model's folder, got one without {', '.join(missing)}: {better}")
    code = list(_code(folder))
    missing = [name for name in code if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected the model's code beside its weights, got one without {', '.join(missing)}: load "
            "model and image processor after `import offseg_hf`, and save them there again"
        )
    return {name: folder / name for name in (*names, *code)}


def _weights(folder: Path) -> list[str]:
    if not (folder / SHARDS).is_file():
        return [WEIGHTS]
    return [SHARDS, *sorted(set(json.loads((folder / SHARDS).read_bytes())["weight_map"].values()))]


def _code(folder: Path) -> Iterator[str]:
    """Yield the modules that the configurations name, wherever they are said to be, and those that these import."""
    found: set[str] = set()
    wanted = [
        reference.rpartition("--")[2].partition(".")[0]
        for file in (CONFIG, PROCESSOR)
        for reference in _references(json.loads((folder / file).read_bytes()).get("auto_map", {}))
    ]
    while wanted:
        module = wanted.pop()
        path = folder / f"{module}.py"
        if path.name not in found:
            found.add(path.name)
            wanted += get_relative_imports(path) if path.is_file() else []
    yield from sorted(found)


def _references(auto_map: Mapping | list | str | None) -> Iterator[str]:
    """Yield all `module.Class` and `repository--module.Class` in a map of Auto classes."""
    if isinstance(auto_map, str):
        yield auto_map
    elif auto_map:
        for value in auto_map.values() if isinstance(auto_map, Mapping) else auto_map:
            yield from _references(value)
