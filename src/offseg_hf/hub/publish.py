"""The official checkpoints to the Hub: recognized, converted, verified and published, one after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from huggingface_hub import HfApi
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from offseg_hf.conversion.checkpoint import open_checkpoint, read_checkpoint
from offseg_hf.conversion.convert import describe_misfit, fitting_presets, load_official_weights, same_names
from offseg_hf.hub.cards import official_card_files
from offseg_hf.hub.repository import Changes, commit, find_changes, read_state, tag_version
from offseg_hf.utils.hub_errors import explain
from offseg_hf.utils.texts import one_line
from offseg_hf.zoo.presets import Preset, get_preset
from offseg_hf.zoo.registration import auto_model_class


SUFFIXES = {".pth", ".pt", ".ckpt", ".bin", ".safetensors"}
TEST_SIZE = (128, 128)  # of the image that a converted model is verified on
Status = Literal["published", "unchanged", "would publish", "failed"]


class VerificationError(RuntimeError):
    """What was written does not load as what was converted."""


@dataclass(frozen=True)
class Unrecognized:
    """A file that is not published; `presets` are those it might be of, were it the only one."""

    source: Path
    reason: str
    presets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Publication:
    """What became of one preset. `detail`: what went up, what was left alone, or what failed."""

    preset: str
    source: Path
    repository: str
    status: Status
    detail: str


def recognize(
    folder: str | Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Path], list[Unrecognized]]:
    """Return which preset each checkpoint below `folder` is of, by keys and shapes; and the files left alone.

    Left alone are a file of no preset or of several, one that cannot be read, a training of one's own (under our
    names, or for other classes), and two files of one preset: nothing is guessed.

    Args:
        folder: Where the checkpoints are, in subfolders too.
        progress: Called with the number of files that are read, and of all.

    Returns:
        By preset its checkpoint, and the files that are left alone.

    Raises:
        FileNotFoundError: If there is no checkpoint at all.
    """
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: expected a folder with checkpoints ({', '.join(sorted(SUFFIXES))}), got none in it"
        )
    found: dict[str, list[Path]] = {}
    others = []
    for number, path in enumerate(paths):
        progress(number, len(paths))
        try:
            file = open_checkpoint(path)
        except (ValueError, OSError) as error:
            others.append(Unrecognized(path, str(error).removeprefix(f"{path}: ")))
            continue
        names = fitting_presets(file.weights)
        if len(names) == 1 and (problem := _other_classes(get_preset(names[0]), file.class_names)):
            others.append(Unrecognized(path, problem, tuple(names)))
        elif len(names) == 1:
            found.setdefault(names[0], []).append(path)
        else:
            fits = f"which fit {', '.join(names)}" if names else describe_misfit(file.weights)
            others.append(Unrecognized(path, f"expected the weights of one preset, got some {fits}", tuple(names)))
    progress(len(paths), len(paths))
    for name, same in found.items():
        for path in same if len(same) > 1 else ():
            rest = ", ".join(str(other) for other in same if other != path)
            reason = f"expected one checkpoint of {name}, got {rest} too: move away what is not to be published"
            others.append(Unrecognized(path, reason, (name,)))
    return {name: same[0] for name, same in found.items() if len(same) == 1}, others


def _other_classes(preset: Preset, class_names: Sequence[str] | None) -> str | None:
    """Return why a checkpoint with these names of classes in it is not the authors' of a preset, if so."""
    if class_names is None or same_names(class_names, preset.labels.names):
        return None
    return (
        f"expected the authors' checkpoint of {preset.name}, got one for other classes ({', '.join(class_names[:3])}, "
        "...), of a training of one's own: `offseg convert` takes it, `offseg push` publishes the model"
    )


def publish(
    api: HfApi,
    checkpoints: Mapping[str, Path],
    namespace: str,
    *,
    dry_run: bool = False,
    private: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[Publication]:
    """Publish a checkpoint of each preset as `namespace`/preset, one after another; none stops the others by failing.

    Args:
        api: The client.
        checkpoints: By preset, as `recognize` returns them.
        namespace: Of the repositories: a user or an organization.
        dry_run: Convert, verify and compare with the Hub, and change nothing there.
        private: Make repositories private; one that is public already is a failure.
        overwrite: Replace what others have changed in a repository.
        say: Called with what is being done.

    Yields:
        What became of each preset.
    """
    for number, (name, source) in enumerate(checkpoints.items(), start=1):
        preset, repository = get_preset(name), f"{namespace}/{name}"
        say(f"{number} of {len(checkpoints)}: {name}, from {source}")
        status: Status
        try:
            status, detail = _publish(api, preset, source, repository, dry_run, private, overwrite, say)
        except Exception as error:  # of the Hub's clients, safetensors and the disk, with no base in common
            status, detail = "failed", explain(error) or one_line(error)
        yield Publication(name, source, repository, status, detail)


def _publish(
    api: HfApi,
    preset: Preset,
    source: Path,
    repository: str,
    dry_run: bool,
    private: bool,
    overwrite: bool,
    say: Callable[[str], None],
) -> tuple[Status, str]:
    state = read_state(api, repository)  # first: without an answer, a conversion is for nothing
    with TemporaryDirectory(prefix="offseg-publish-") as temporary:
        folder = Path(temporary)
        convert_and_verify(preset, source, folder)
        files: dict[str, Path | bytes] = {path.name: path for path in sorted(folder.iterdir())}
        files |= {path: text.encode() for path, text in official_card_files(preset, repository).items()}
        changes = find_changes(api, state, files, private=private, overwrite=overwrite)
        if dry_run:
            return ("unchanged" if changes.is_empty else "would publish"), _describe(changes)
        if not changes.is_empty:
            say(f"{preset.name}: uploading {_describe(changes)}")
            commit(api, state, changes, f"Publish {preset.name}", private=private)
    note = tag_version(api, repository)
    detail = _describe(changes) + (f"; {note}" if note else "")
    return ("unchanged" if changes.is_empty else "published"), detail


def convert_and_verify(preset: Preset, source: Path, folder: Path) -> None:
    """Write the model of an official checkpoint into `folder`, and load it from there as users will.

    Raises:
        ValueError: For a checkpoint of something else.
        VerificationError: If it does not load as it was written.
    """
    model, _ = load_official_weights(preset, read_checkpoint(source), str(source))
    processor = preset.image_processor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    verify(folder, model, processor)


def verify(folder: Path, model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Raise VerificationError unless `folder` loads as `model` and `processor`: weights, settings and a label map."""
    config = AutoConfig.from_pretrained(folder)
    loaded, info = auto_model_class(config).from_pretrained(folder, output_loading_info=True)
    theirs, ours = loaded.state_dict(), model.state_dict()
    problems = [f"{kind}: {sorted(map(str, keys))[0]}" for kind, keys in info.items() if keys]
    problems += [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    if problems or len(theirs) != len(ours):
        raise VerificationError(f"the written model loads with other weights ({(problems or ['more of them'])[0]})")
    loaded_processor = AutoImageProcessor.from_pretrained(folder)
    if loaded_processor.to_dict() != processor.to_dict():
        raise VerificationError("the written image processor loads with other settings")
    photo = Image.effect_mandelbrot(TEST_SIZE, (-2, -1.5, 1, 1.5), 100).convert("RGB")
    if not torch.equal(label_map(model, processor, photo), label_map(loaded.eval(), loaded_processor, photo)):
        raise VerificationError("the written model gives another label map than the converted one")


@torch.inference_mode()
def label_map(model: PreTrainedModel, processor: Any, photo: Image.Image) -> Tensor:
    """Return the class ids (height, width) of a photo at its own size."""
    outputs = model(**processor(images=photo, do_resize=False, return_tensors="pt"))
    size = (photo.height, photo.width)
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]


def _describe(changes: Changes) -> str:
    parts = [f"{len(changes.add)} files, {changes.size / 1e6:.1f} MB"] if changes.add else []
    parts += [f"{len(changes.delete)} deleted"] if changes.delete else []
    parts += [f"{path} was changed there by someone and is kept (--overwrite replaces it)" for path in changes.kept]
    return ", ".join(parts) or "all is there"
