"""Image processor of OffSeg: the official test protocol, as settings.

Keep-ratio resize as OpenCV does it, normalization, and the windows through which the model is to look at the image
(HVision-NKU/OffSeg @ 1414f6d: `SegDataPreProcessor`, `EncoderDecoder.slide_inference`, `postprocess_result`).
"""

from collections.abc import Iterable
from os import PathLike
from typing import Any, Self

import numpy as np
from torch import Tensor
from transformers import AutoConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .configuration_offset import refuse_name, refuse_near_names
from .image_operations import (
    keep_ratio_size,
    pad_label_map,
    read_from,
    read_image,
    read_label_map,
    reduce_labels,
    resize_bilinear,
    resize_nearest,
    sliding_windows,
    to_list,
    upsampled,
    upsampled_argmax,
)


logger = logging.get_logger(__name__)

# Settings that transformers has for all image processors, and that would have no effect here.
WITHOUT_EFFECT = {
    "crop_size": "images are not cropped, crop them before",
    "disable_grouping": "images are never grouped",
    "image_seq_length": "it is for models of text",
}

SIZE_DIVISOR = 32  # of models on other backbones
# What an image processor does to pixels, and ours does likewise.
OF_PIXELS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class OffSegImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""Settings of [`OffSegImageProcessor`] beside those of every image processor.

    window_size (`int`, *optional*, defaults to `self.window_size`):
        Side of the square windows, in pixels of the resized image. `None` is one window, the whole image.
    window_stride (`int`, *optional*, defaults to `self.window_stride`):
        Distance between the starts of neighboring windows, at most `window_size`.
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        The sides of `pixel_values`, and of what the windows cover, are padded to multiples of it.
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether label 0 means "no class", as in ADE20K: 0 becomes 255 and every other label one less; 255 stays.
    """

    window_size: int | None
    window_stride: int | None
    size_divisor: int | None
    do_reduce_labels: bool | None


class OffSegImageProcessor(PilBackend):
    """Images to `pixel_values`, `windows` and `image_sizes`, label maps to `labels`, and logits back to label maps.

    size: `{"shortest_edge", "longest_edge"}`: the largest size of the same aspect ratio within both;
        `{"shortest_edge"}`: the same without the second bound; `{"height", "width"}`: exactly this.
    do_rescale: as everywhere in transformers, whether pixels come as 0..255, floats too. For floats in 0..1 pass
        `do_rescale=False`.
    do_pad, pad_size: pad at the bottom and the right, images with 0 (the mean color), label maps with 255, each image
        to a multiple of `size_divisor`, if set, and all to the largest size of the batch or to `pad_size`.
    window_size, window_stride, size_divisor, do_reduce_labels: see [`OffSegImageProcessorKwargs`].
    """

    valid_kwargs = OffSegImageProcessorKwargs
    model_input_names = ["pixel_values", "windows", "image_sizes"]

    do_convert_rgb = True
    do_resize = True
    size: Any = {"shortest_edge": 512, "longest_edge": 2048}  # which transformers makes a SizeDict of
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True
    window_size: int | None = 512
    window_stride: int | None = 480
    size_divisor: int | None = None
    do_reduce_labels = False

    def __init__(self, **kwargs: Unpack[OffSegImageProcessorKwargs]):
        if "image_processor_type" not in kwargs:  # a saved one, which may have settings of a newer version
            self._check_names(kwargs)
        super().__init__(**kwargs)
        self._check_settings(**{name: getattr(self, name) for name in self._settings()})

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs):
        """Make one of saved settings; of `kwargs` that are no settings, those that nearly are one are refused."""
        processor, unused = super().from_dict(image_processor_dict, return_unused_kwargs=True, **kwargs)
        if return_unused_kwargs:
            return processor, unused
        refuse_near_names(cls.__name__, unused.keys() - set(cls._settings()), cls._settings())
        return processor

    @classmethod
    def from_backbone(cls, backbone: str | PathLike, **kwargs: Unpack[OffSegImageProcessorKwargs]) -> Self:
        """Make one for a model on a backbone, with the pixels that the backbone was trained on.

        Args:
            backbone: Name on the Hub, or folder, as of [`OffSegForSemanticSegmentation.from_backbone`].
            **kwargs: Settings; by default `image_mean`, `image_std` and their like are the backbone's, and images are
                padded to multiples of 32.

        Raises:
            OSError: if the backbone says nothing about its pixels, and `kwargs` lack them.
        """
        theirs: dict[str, Any] = {}
        if not {"image_mean", "image_std"} <= kwargs.keys():
            theirs = pixel_settings_of(str(backbone))
        return cls(**({"size_divisor": SIZE_DIVISOR} | theirs | kwargs))

    @classmethod
    def _settings(cls) -> list[str]:
        return list(cls.valid_kwargs.__annotations__)

    @classmethod
    def _check_names(cls, names: Iterable[str]) -> None:
        for name in names:
            if name not in cls._settings():
                refuse_name(cls.__name__, name, [known for known in cls._settings() if known not in WITHOUT_EFFECT])

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[OffSegImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, with their label maps if any, for the model.

        Args:
            images: One or a list of PIL images (any mode), paths, URLs, or numpy arrays and torch tensors (height,
                width), (height, width, channels) or (channels, height, width), of booleans, integers in 0..255, uint16
                or floats; or an array of several. `read_image` says what becomes of alpha, 16 bits and EXIF rotation:
                whatever the way in, an image gives the same pixels, upright.
            segmentation_maps: As many label maps, (height, width) each, of the sizes of their (upright) images.
            **kwargs: Settings to replace for this call, and `device`, where the tensors are to be; the images are
                prepared on the CPU.

        Returns:
            `pixel_values` float32 (batch, 3, height, width), `windows` int64 (batch, num_windows, 4) with boxes (top,
            left, bottom, right), zeros where an image has fewer, `image_sizes` int64 (batch, 2) with the height and
            width of each image within `pixel_values`, and `labels` int64 (batch, height, width).

        Raises:
            ValueError: which names the image, label map or setting at fault.
        """
        if kwargs.get("do_center_crop", self.do_center_crop):  # before transformers asks for the size of the crop
            raise ValueError("do_center_crop: not supported, crop the images before")
        self._check_names(name for name in kwargs if name != "image_like_kwargs")
        inputs = super().preprocess(images, segmentation_maps, **kwargs)
        device = kwargs.get("device") or self.device
        if device is None:
            return inputs
        if kwargs.get("return_tensors", self.return_tensors) != TensorType.PYTORCH:
            raise ValueError(f'device: only tensors have one, pass return_tensors="pt" beside device={str(device)!r}')
        for name, value in inputs.items():
            inputs[name] = [part.to(device) for part in value] if isinstance(value, list) else value.to(device)
        return inputs

    def _preprocess_image_like_inputs(self, *args, **kwargs) -> BatchFeature:
        # Where transformers has images and label maps prepared together, with every setting resolved: the public
        # `preprocess` around it only resolves them.
        return self._prepare(*args, **kwargs)

    def _prepare(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        *,
        do_resize: bool,
        size: SizeDict,
        do_pad: bool,
        pad_size: SizeDict | None,
        window_size: int | None,
        window_stride: int | None,
        size_divisor: int | None,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        self._check_settings(
            do_resize=do_resize,
            size=size,
            window_size=window_size,
            window_stride=window_stride,
            size_divisor=size_divisor,
            **kwargs,
        )
        images = self._read_images(images, **kwargs)
        labels = [] if segmentation_maps is None else self._read_label_maps(segmentation_maps, images, **kwargs)
        if do_resize:
            images = [self.resize(image, size) for image in images]
            labels = [resize_nearest(label, *image.shape[1:]) for label, image in zip(labels, images)]
        image_sizes: list[tuple[int, int]] = [image.shape[1:] for image in images]
        padded_sizes = image_sizes
        images = [self._rescale_and_normalize(image, **kwargs) for image in images]
        if do_pad:
            padded_sizes = [_round_up(size, size_divisor or 1) for size in image_sizes]
            height, width = (max(lengths) for lengths in zip(*padded_sizes))
            pad_size = pad_size or SizeDict(height=height, width=width)
            if (pad_size.height or 0) < height or (pad_size.width or 0) < width:
                raise ValueError(
                    f"pad_size: expected at least {height} x {width} for these images, got {dict(pad_size)}"
                )
            images = self.pad(images, pad_size)
            labels = [pad_label_map(label, *image.shape[1:]) for label, image in zip(labels, images)]
        windows = [_windows(*size, window_size, window_stride) for size in padded_sizes]
        data = {
            "pixel_values": images,
            "windows": _pad_windows(windows),
            "image_sizes": [np.array(size, dtype=np.int64) for size in image_sizes],
        }
        if labels:
            data["labels"] = labels
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _read_images(
        self, images: ImageInput, do_convert_rgb: bool, input_data_format: str | ChannelDimension | None, **kwargs
    ) -> list[np.ndarray]:
        """Return images as uint8 or float32 (channels, height, width)."""
        arrays = [
            read_from(image, f"image {index}", lambda picture: read_image(picture, do_convert_rgb, input_data_format))
            for index, image in enumerate(to_list(images, ndim=3))
        ]
        if not arrays:
            raise ValueError("expected at least one image, got none")
        return arrays

    def _read_label_maps(
        self, segmentation_maps: ImageInput, images: list[np.ndarray], do_reduce_labels: bool, **kwargs
    ) -> list[np.ndarray]:
        """Return label maps as int64 (height, width), checked against the images."""
        segmentation_maps = to_list(segmentation_maps, ndim=2)
        if len(segmentation_maps) != len(images):
            raise ValueError(f"expected a label map per image, got {len(segmentation_maps)} for {len(images)} images")
        labels = []
        for index, (segmentation_map, image) in enumerate(zip(segmentation_maps, images)):
            label = read_from(segmentation_map, f"label map {index}", read_label_map)
            if label.shape != image.shape[1:]:
                expected, got = (f"{height} x {width}" for height, width in (image.shape[1:], label.shape))
                raise ValueError(f"label map {index}: expected {expected} as its image (height x width), got {got}")
            labels.append(reduce_labels(label) if do_reduce_labels else label)
        return labels

    def resize(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """Resize (channels, height, width) to `size` bilinearly, without antialiasing, as OpenCV does."""
        if size.shortest_edge:
            old_height, old_width = image.shape[1:]
            height, width = keep_ratio_size(old_height, old_width, size.shortest_edge, size.longest_edge)
        else:
            height, width = size.height, size.width
        return resize_bilinear(image, height, width)

    def _rescale_and_normalize(
        self,
        image: np.ndarray,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        **kwargs,
    ) -> np.ndarray:
        """Return a float32 copy of an image (channels, height, width), rescaled and normalized.

        In one step, (image - mean / factor) / (std / factor): the official arithmetic, with mean and std in 0..255.
        """
        factor = rescale_factor if do_rescale else 1.0
        if do_rescale and image.dtype != np.uint8 and image.min() >= 0 and 0 < image.max() <= 1:
            logger.warning_once("Float pixels are taken for 0..255, but these lie in 0..1: pass `do_rescale=False`?")
        image = image.astype(np.float32)
        if not do_normalize:
            return image * np.float32(factor)
        mean, std = (
            np.divide(value, factor).astype(np.float32).reshape(-1, 1, 1) for value in (image_mean, image_std)
        )
        if len(mean) not in (1, len(image)) or len(std) not in (1, len(image)):
            raise ValueError(
                f"expected image_mean and image_std for {len(image)} channels, got {len(mean)} and {len(std)} values"
            )
        image -= mean
        image /= std
        return image

    def _check_settings(
        self,
        *,
        do_resize: bool | None,
        size: SizeDict,
        window_size: int | None,
        window_stride: int | None,
        size_divisor: int | None,
        resample: PILImageResampling | int | None,
        data_format: str | ChannelDimension | None,
        do_center_crop: bool | None = None,
        **kwargs,
    ) -> None:
        """Refuse settings that would have no effect, instead of ignoring them."""
        if do_center_crop:
            raise ValueError("do_center_crop: not supported, crop the images before")
        for name, reason in WITHOUT_EFFECT.items():
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: has no effect here, {reason}")
        if do_resize:
            lengths = {name: length for name, length in dict(size).items() if length is not None}
            forms = ({"shortest_edge", "longest_edge"}, {"shortest_edge"}, {"height", "width"})
            if set(lengths) not in forms or not all(isinstance(n, int) and n >= 1 for n in lengths.values()):
                raise ValueError(
                    'size: expected {"shortest_edge", "longest_edge"}, {"shortest_edge"} or {"height", "width"}, of '
                    f"positive integers, got {lengths}"
                )
        if do_resize and resample != PILImageResampling.BILINEAR:
            raise ValueError(f"resample: expected BILINEAR (2), which is OpenCV's bilinear here, got {resample!r}")
        if data_format is not None and data_format != ChannelDimension.FIRST:
            raise ValueError(f'data_format: expected "channels_first", got {data_format!r}')
        if window_size is not None and (window_stride is None or not 1 <= window_stride <= window_size):
            raise ValueError(
                f"expected 1 <= window_stride <= window_size, got window_stride={window_stride} and "
                f"window_size={window_size} (for no windows: window_size=None)"
            )
        if size_divisor is not None and size_divisor < 1:
            raise ValueError(f"size_divisor: expected at least 1, or None, got {size_divisor}")

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Logits to label maps, int64 (height, width), one per image.

        outputs: with `logits` (batch, num_labels, height, width) and, if the model looked through windows,
            `image_sizes`: they say where in a padded batch the image is.
        target_sizes: (height, width) per image, to which the logits are upsampled bilinearly before the classes are
            compared; usually the sizes of the original images, upright. Without, label maps have the size of the
            logits.
        return_segmentation_scores: return objects with `segmentation` and `segmentation_scores`, the float32 logits
            (num_labels, height, width) it was chosen from. They need memory for all classes at full size.

        Raises ValueError for sizes that are none, for the size of a photo as it is stored where its EXIF orientation
        turns it, and for logits of images that were padded for their batch, where the model was not told
        (`model(**inputs)` tells it).
        """
        logits = getattr(outputs, "logits", None)
        if logits is None:
            raise ValueError(f"expected the outputs of the model, which have `logits`, got {type(outputs).__name__}")
        image_sizes = getattr(outputs, "image_sizes", None)
        target_sizes = checked_target_sizes(target_sizes, len(logits))
        if image_sizes is None and target_sizes is not None:
            self._refuse_padding(target_sizes, logits.shape[-2:])
        results = []
        for index, image_logits in enumerate(logits):
            if image_sizes is not None:
                height, width = image_sizes[index].tolist()
                image_logits = image_logits[:, :height, :width]
                if target_sizes is not None:
                    self._refuse_lying(target_sizes[index], (height, width))
            size = tuple(image_logits.shape[1:]) if target_sizes is None else target_sizes[index]
            if return_segmentation_scores:
                scores = upsampled(image_logits, size)
                results.append(
                    SemanticSegmentationPostProcessorOutput(
                        data={"segmentation": scores.argmax(dim=0), "segmentation_scores": scores}
                    )
                )
            else:
                results.append(upsampled_argmax(image_logits, size))
        return results

    def _refuse_padding(self, target_sizes: list[tuple[int, int]], map_size: tuple[int, int]) -> None:
        """Raise ValueError if images were padded to `map_size`, and nothing says where they lie in it.

        They are images of `target_sizes`, as these settings prepare them.
        """
        if not self.do_pad:
            return
        sizes = target_sizes
        if self.do_resize and self.size.shortest_edge:
            sizes = [keep_ratio_size(*size, self.size.shortest_edge, self.size.longest_edge) for size in sizes]
        elif self.do_resize:
            sizes = [(self.size.height, self.size.width)]
        padded = tuple(max(lengths) for lengths in zip(*(_round_up(size, self.size_divisor or 1) for size in sizes)))
        if self.pad_size:
            padded = (self.pad_size.height, self.pad_size.width)
        is_whole = all(size == padded for size in sizes)
        fits = any(_round_up(padded, stride) == tuple(stride * n for n in map_size) for stride in (1, 2, 4, 8))
        if fits and not is_whole:
            raise ValueError(
                f"these images were padded to {padded[0]} x {padded[1]} (height x width), and the model was not told "
                "where they lie in it: call it as model(**inputs), with all that the image processor returned"
            )

    def _refuse_lying(self, target_size: tuple[int, int], image_size: tuple[int, int]) -> None:
        """Raise ValueError if an image of `image_size` was resized from `target_size` with its sides exchanged."""
        if not (self.do_resize and self.size.shortest_edge):
            return
        edges = (self.size.shortest_edge, self.size.longest_edge)
        lying, upright = (keep_ratio_size(*size, *edges) for size in (target_size, target_size[::-1]))
        if image_size == upright != lying:
            height, width = target_size
            raise ValueError(
                f"target_sizes: got {height} x {width} (height x width) for an image that is {width} x {height} "
                "upright, as its EXIF orientation says: turn the photo before its size is read "
                "(PIL.ImageOps.exif_transpose)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they are saved.

        `AutoImageProcessor` wants code on the Hub named for each of its backends.
        """
        settings = super().to_dict()
        reference = settings.get("auto_map", {}).get("AutoImageProcessor")
        if isinstance(reference, str):
            settings["auto_map"]["AutoImageProcessor"] = {"torchvision": reference, "pil": reference}
        return settings


def checked_target_sizes(
    target_sizes: list[tuple[int, int]] | Tensor | None, num_images: int
) -> list[tuple[int, int]] | None:
    """Return (height, width) per image, as integers; raises ValueError for anything else."""
    if target_sizes is None:
        return None
    given = target_sizes.tolist() if isinstance(target_sizes, Tensor | np.ndarray) else list(target_sizes)
    try:
        sizes = [(int(height), int(width)) for height, width in given]
    except (TypeError, ValueError):
        raise ValueError(
            f"target_sizes: expected (height, width) for every image, as in [(480, 640)], got {target_sizes!r}"
        ) from None
    if len(sizes) != num_images:
        raise ValueError(f"expected a target size per image, got {len(sizes)} for {num_images} images")
    wrong = [size for size in sizes if min(size) < 1]
    if wrong:
        raise ValueError(f"target_sizes: expected at least 1 x 1 pixels, got {wrong[0]}")
    return sizes


def pixel_settings_of(backbone: str) -> dict[str, Any]:
    """Return what a backbone's image processor, or timm's description of a model, says about pixels."""
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(backbone)
    except (OSError, ValueError) as error:
        try:
            config = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
        except (OSError, ValueError):
            config = None
        described = getattr(config, "pretrained_cfg", None) or {}  # timm's
        if not {"mean", "std"} <= described.keys():
            raise OSError(
                f"{backbone}: expected an image processor (preprocessor_config.json) or a model of timm on the Hub, "
                "got neither: pass the image_mean and the image_std that it was trained with"
            ) from error
        settings = {"image_mean": described["mean"], "image_std": described["std"]}
    return {name: settings[name] for name in OF_PIXELS if settings.get(name) is not None}


def _round_up(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    height, width = ((length + divisor - 1) // divisor * divisor for length in size)
    return height, width


def _windows(height: int, width: int, window_size: int | None, window_stride: int | None) -> np.ndarray:
    if window_size is None or window_stride is None:
        return np.array([[0, 0, height, width]], dtype=np.int64)
    return sliding_windows(height, width, window_size, window_stride).numpy()


def _pad_windows(windows: list[np.ndarray]) -> list[np.ndarray]:
    most = max(len(boxes) for boxes in windows)
    return [np.pad(boxes, ((0, most - len(boxes)), (0, 0))) for boxes in windows]
