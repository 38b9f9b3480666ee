"""Models as they are asked for, as folders or names on the Hub; and their exports."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor, PreTrainedConfig
from transformers.utils.hub import cached_file

from offseg_hf.export import Format, Precision
from offseg_hf.export.export import ExportOptions, export_model
from offseg_hf.export.openvino import convert_to_openvino
from offseg_hf.export.runtime import FILES, ExportedConfig, ExportedUniversalConfig
from offseg_hf.inference.files import read_photo
from offseg_hf.utils.files import file_digests, new_folder
from offseg_hf.zoo.presets import PRESETS, nearest_presets
from offseg_hf.zoo.registration import auto_model_class, register


WEIGHTS = ("*.safetensors", "*.bin", "*.onnx", "*.xml")


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Args:
        name: as it was asked for.
        source: folder or name on the Hub, of which it is loaded.
        built: whether its weights were made here, as there are none: times do not depend on them.
        exported: format and precision, if it is an exported folder.
    """

    name: str
    source: str
    built: bool = False
    exported: tuple[Format, Precision] | None = None

    @property
    def slug(self) -> str:
        """Return the name as that of a file."""
        return self.name.strip("/.").replace("/", "--")


def subject_of(name: str, folder: Path) -> Subject:
    """Return the model called `name`: a folder, a name on the Hub, a preset, or a folder with a configuration alone.

    Args:
        name: of the model.
        folder: where a model is built whose weights are not here.

    Raises:
        ValueError: if there is none.
    """
    register()
    path = Path(name)
    if not path.exists() and name in PRESETS:
        preset = PRESETS[name]
        return _built(name, preset.config(), preset.image_processor(), folder)
    if (path / "config.json").is_file():
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if isinstance(config, ExportedConfig):
            return Subject(name, name, exported=(Format(config.format), Precision(config.precision)))
        if not any(True for pattern in WEIGHTS for _ in path.glob(pattern)):
            return _built(name, config, AutoImageProcessor.from_pretrained(path, trust_remote_code=False), folder)
        return Subject(name, name)
    try:
        settings, _ = PreTrainedConfig.get_config_dict(name)
    except Exception as error:  # of the client and of the network below it
        raise ValueError(
            f"no model at {name}: no such preset{nearest_presets(name)}, no folder of a model, and the Hub gives none"
        ) from error
    if settings.get("model_type") in (ExportedConfig.model_type, ExportedUniversalConfig.model_type):
        return Subject(name, name, exported=(Format(settings["format"]), Precision(settings["precision"])))
    return Subject(name, name)


def _built(name: str, config: PreTrainedConfig, processor: BaseImageProcessor, folder: Path) -> Subject:
    """Save a model with the weights that training begins with, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_model_class(config).from_config(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Subject(name, str(folder), built=True)


def export_subject(
    subject: Subject, format: Format, precision: Precision, photos: Sequence[Path], folder: Path
) -> Path:
    """Return the folder of a model's export, which is made unless it is there, of this model and these options.

    Args:
        subject: the model.
        format: of the export.
        precision: of the export.
        photos: the first settles the size of the network's images; int8 is calibrated with them.
        folder: for the exports of all models.

    Raises:
        ValueError: for a model that cannot be exported, and for what is not installed.
    """
    folder = folder / subject.slug
    output, stamp = folder / f"{format}-{precision}", folder / f"{format}-{precision}.json"
    made_of = {
        "model": subject.name,
        "files": file_digests(Path(subject.source)) or _commit(subject.source),
        "photos": [str(photo) for photo in photos] if precision == Precision.int8 else [],
        "size": read_photo(photos[0]).size,
    }
    text = json.dumps(made_of)
    if stamp.is_file() and (output / "config.json").is_file() and stamp.read_text(encoding="utf-8") == text:
        return output
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    if format == Format.openvino:  # of the ONNX, which takes longest to make
        onnx_folder = export_subject(subject, Format.onnx, precision, photos, folder.parent)
        _convert(onnx_folder, output)
    else:
        options = ExportOptions(format, precision)
        export_model(subject.source, output, options=options, photos=photos, overwrite=True)
    stamp.write_text(text, encoding="utf-8")
    return output


def _convert(source: Path, output: Path) -> None:
    """Make the folder of an OpenVINO export of that of an ONNX export."""
    with new_folder(output, overwrite=True) as folder:
        convert_to_openvino(source / FILES[Format.onnx][0], folder / FILES[Format.openvino][0], {})
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config.format = Format.openvino
        config.batch_size = None if config.size is None else 1
        config.save_pretrained(folder)
        AutoImageProcessor.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)


def _commit(name: str) -> str:
    """Return the commit of a model on the Hub, after which its folder in the cache is called."""
    return Path(cached_file(name, "config.json")).parent.name
