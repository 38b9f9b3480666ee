"""What was exported, run as the model is: a model of transformers whose network is a file for another runtime.

Windows, padding and post-processing stay those of this package, so that `pipeline`, `offseg segment` and `offseg
evaluate` take an exported folder as they take a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.hub import cached_file

from offseg_hf.export import Format
from offseg_hf.models.configuration_offset import AnyBase
from offseg_hf.models.modeling_offset_mask2former import OffsetMask2FormerForUniversalSegmentationOutput
from offseg_hf.models.modeling_utils import SemanticSegmentationMixin
from offseg_hf.utils.extras import require


# As pip and Python name them.
RUNTIMES = {
    Format.onnx: "onnxruntime",
    Format.openvino: "openvino",
    Format.torch: "torch",
    Format.aotinductor: "torch",
}
FILES = {
    Format.onnx: ("model.onnx",),
    Format.openvino: ("model.xml", "model.bin"),
    Format.torch: ("model.pt2",),
    Format.aotinductor: ("model.pt2",),
}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


@strict
class ExportedConfig(PreTrainedConfig):
    r"""Configuration of an exported model.

    format (`str`, *optional*, defaults to `"onnx"`):
        `"onnx"`, `"openvino"`, `"torch"` or `"aotinductor"`.
    precision (`str`, *optional*, defaults to `"fp32"`):
        What the network computes in.
    size (`list[int]`, *optional*, defaults to `[512, 512]`):
        Height and width of the only images that the network takes; `None` for one that takes any.
    batch_size (`int`, *optional*, defaults to 1):
        How many images the network takes at once; `None` for one that takes any number, as those of any size do.
    num_channels (`int`, *optional*, defaults to 3):
        Of the images.
    num_parameters (`int`, *optional*, defaults to 0):
        Of the model that was exported.
    source (`dict`, *optional*):
        What was exported: name, class and digest of its weights.
    sha256 (`str`, *optional*):
        Digest of the file, by which evaluations tell one from another.
    """

    model_type = "exported_segmenter"
    keys_to_ignore_at_inference = ["image_sizes"]

    format: str = "onnx"
    precision: str = "fp32"
    size: list[int] | tuple[int, ...] | None = (512, 512)
    batch_size: int | None = 1
    num_channels: int = 3
    num_parameters: int = 0
    source: dict | None = None
    sha256: str | None = None

    def validate_architecture(self):
        """Part of the `strict` validation."""
        if self.format not in RUNTIMES:
            raise ValueError(f"format must be one of {', '.join(Format)}, got {self.format!r}")


@strict
class ExportedUniversalConfig(ExportedConfig):
    """Configuration of an exported model of masks; its fields are those of every exported model."""

    model_type = "exported_universal_segmenter"


class ExportedMixin(AnyBase):
    """A model whose network runs in another runtime, on the CPU.

    Args:
        config: its configuration.
        network: the network.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    outputs: tuple[str, ...] = ()  # of the network, by their names in the model's output

    def __init__(self, config: ExportedConfig, network: "Network"):
        super().__init__(config)
        self.network = network
        # Of transformers' models the parameters say what device and precision inputs are wanted in.
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    @classmethod
    def from_pretrained(cls, name: str | Path, *_, config: ExportedConfig | None = None, **kwargs) -> Any:
        """Load an exported folder, or one on the Hub.

        Args:
            name: The folder, or the repository on the Hub.
            *_: Nothing.
            config: Its configuration; by default it is read.
            **kwargs: `output_loading_info`, and where on the Hub it is; what is for weights is refused.

        Raises:
            ValueError: for another precision than that of the file, and if the runtime is not installed.
        """
        where = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
        if kwargs.get("dtype") not in (None, "auto", torch.float32, "float32"):
            raise ValueError(
                f"{name} was exported in its precision, got dtype {kwargs['dtype']}: export the model again, with "
                "another --precision, and pass float32 here, in which it takes images and gives logits"
            )
        if config is None:
            config = cls.config_class.from_pretrained(name, **where)
        paths = [cached_file(str(name), file, **where) for file in FILES[Format(config.format)]]
        model = cls(config, open_network(Path(paths[0]), config.format, config.precision)).eval()
        if not kwargs.get("output_loading_info"):
            return model
        return model, {name: set() for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}

    def run(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the network's outputs of images: together if it takes any number, else one by one.

        Raises:
            ValueError: for images of another size than the only one.
        """
        size, number = self.config.size, self.config.batch_size
        if size is not None and tuple(pixel_values.shape[-2:]) != tuple(size):
            raise ValueError(
                f"this model was exported for images of {size[0]} x {size[1]} (height x width), got "
                f"{pixel_values.shape[-2]} x {pixel_values.shape[-1]}: use the model itself for these, or export it "
                "again, for any size (--dynamic) or with a photo of this size (--photos)"
            )
        images = pixel_values.to("cpu", torch.float32)
        parts = images.split(number) if size and number else [images]
        parts = [self.network.run(part.numpy()) for part in parts]
        return [torch.from_numpy(np.concatenate(each)).to(pixel_values.device) for each in zip(*parts)]

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return how many the exported model has, none of which can be trained."""
        return 0 if only_trainable else self.config.num_parameters

    def fuse(self) -> Any:
        """Raise ValueError: it was fused before it was exported."""
        raise ValueError("an exported model is fused already")

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Raise ValueError: an exported folder is complete."""
        raise ValueError("an exported model cannot be saved: copy its folder, or export the model again")


class ExportedForSemanticSegmentation(ExportedMixin, SemanticSegmentationMixin, PreTrainedModel):
    """An exported model for semantic segmentation."""

    config: ExportedConfig
    outputs = ("logits",)

    def forward(  # without labels: it cannot be trained
        self, pixel_values: Tensor, windows: Tensor | None = None, image_sizes: Tensor | None = None
    ) -> Any:
        """Segment images as every model here does; arguments are those of its `forward`."""
        return super().forward(pixel_values, windows=windows, image_sizes=image_sizes, output_hidden_states=False)

    def segment(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of images, and no feature maps."""
        (logits,) = self.run(pixel_values)
        return logits, []


class ExportedForUniversalSegmentation(ExportedMixin, PreTrainedModel):
    """An exported model that segments images into masks with classes."""

    config: ExportedUniversalConfig
    outputs = ("class_queries_logits", "masks_queries_logits")

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, image_sizes: Tensor | None = None
    ) -> OffsetMask2FormerForUniversalSegmentationOutput:
        """Segment images into masks.

        Args:
            pixel_values: (batch, num_channels, height, width).
            pixel_mask: without effect, as in Mask2Former.
            image_sizes: (batch, 2), go into the output for its post-processing.
        """
        classes, masks = self.run(pixel_values)
        return OffsetMask2FormerForUniversalSegmentationOutput(
            class_queries_logits=classes, masks_queries_logits=masks, image_sizes=image_sizes
        )


@dataclass(frozen=True)
class Network:
    """A network in a runtime.

    Args:
        run: float32 images (batch, channels, height, width) -> its outputs.
        computes_in: what it really computes in: bf16 only on processors that have it.
    """

    run: Callable[[np.ndarray], list[np.ndarray]]
    computes_in: str


def open_network(path: Path, format: str, precision: str) -> Network:
    """Open the network in a file.

    Args:
        path: the file.
        format: one of `RUNTIMES`.
        precision: in which it computes.
    """
    if format == Format.onnx:
        session = open_session(path)
        return Network(lambda images: session.run(None, {"pixel_values": images}), precision)
    if format == Format.openvino:
        return _open_openvino(path, precision)
    network: Any = (
        torch.export.load(path).module()
        if format == Format.torch
        else torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    )

    @torch.no_grad()
    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = network(pixel_values=torch.from_numpy(images))
        except AssertionError as error:  # of sizes, which tracing takes for larger than one wherever it halves them
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} (height x width) are not such as this program of "
                f"PyTorch takes ({error}): use the model itself for these, or export it as ONNX"
            ) from error
        return [output.numpy() for output in outputs]

    return Network(run, precision)


def open_session(path: Path) -> Any:
    """Open a file in ONNX Runtime, with as many threads as torch has."""
    onnxruntime = require("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _open_openvino(path: Path, precision: str) -> Network:
    openvino = require("openvino", "export")
    # On newer processors OpenVINO would compute in bf16 unless it is told.
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    is_other = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() != hint

    def run(images: np.ndarray) -> list[np.ndarray]:
        outputs = request.infer({0: images})
        return [outputs[index].copy() for index in range(len(outputs))]

    return Network(run, "fp32" if is_other else precision)
