"""Image processor of Mask2Former with offset learning: the official test protocol, and masks for training.

HVision-NKU/OffSeg @ 1414f6d: `SegDataPreProcessor`, and `_seg_data_to_instance_data` and `predict` of
`Mask2FormerHeadOffsetLearning`. Instances and panoptic segments are found by transformers' Mask2Former.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from transformers.processing_utils import Unpack
from transformers.utils import TensorType

from .image_operations import upsampled, upsampled_argmax_of_rows
from .image_processing_offseg import (
    OffSegImageProcessor,
    OffSegImageProcessorKwargs,
    checked_target_sizes,
)


MASK_STRIDE = 4  # of the model's masks, in pixels of its input
IGNORED = 255  # in label maps: no class, or padding


class OffsetMask2FormerImageProcessor(OffSegImageProcessor):
    """Prepare images for a Mask2Former, and read label maps, instances and panoptic segments in its masks.

    Images become `pixel_values` and `image_sizes`, label maps masks with classes. Settings are those of
    [`OffSegImageProcessor`]; there are no windows, as the model sees images whole.
    """

    model_input_names = ["pixel_values", "image_sizes"]

    window_size = None
    window_stride = None
    size_divisor = 32

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        instance_id_to_semantic_id: dict[int, int] | list[dict[int, int]] | None = None,
        **kwargs: Unpack[OffSegImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, with their label maps if any, for the model.

        Args:
            images: As [`OffSegImageProcessor.preprocess`] takes them.
            segmentation_maps: As many label maps, of classes, 255 where there is none; or of instances.
            instance_id_to_semantic_id: Makes the label maps those of instances: for all images, or one for each, it
                says the class of every id. An id that it lacks is an error, but for 255, which then is no instance.
                With `do_reduce_labels` classes count from 1 in there, class 0 is none, and so is id 0 instead of 255.
            **kwargs: Settings to replace for this call.

        Returns:
            `pixel_values` float32 (batch, 3, height, width), `image_sizes` int64 (batch, 2) with the height and width
            of each image within `pixel_values`, and per image in lists `mask_labels` float32 (num_masks, height,
            width), one for every class or instance in the image, and `class_labels` int64 (num_masks,).

        Raises:
            ValueError: which names the image or label map at fault.
        """
        image_like_kwargs = {"instance_id_to_semantic_id": instance_id_to_semantic_id}
        return super().preprocess(images, segmentation_maps, image_like_kwargs=image_like_kwargs, **kwargs)

    def _prepare(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        *,
        instance_id_to_semantic_id: dict[int, int] | list[dict[int, int]] | None = None,
        do_reduce_labels: bool = False,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        has_instances = instance_id_to_semantic_id is not None
        data = super()._prepare(
            images,
            segmentation_maps,
            do_reduce_labels=do_reduce_labels,
            has_instances=has_instances,
            return_tensors=None,
            **kwargs,
        )
        del data["windows"]
        label_maps = data.pop("labels", None)
        inputs = BatchFeature(data=data, tensor_type=return_tensors)
        if label_maps is None:
            return inputs

        given = instance_id_to_semantic_id
        per_image = given if isinstance(given, list) else [given] * len(label_maps)
        if len(per_image) != len(label_maps):
            raise ValueError(
                f"instance_id_to_semantic_id: expected one for all, or one per image ({len(label_maps)}), got "
                f"{len(per_image)}"
            )
        segments = []
        for index, (label_map, class_of) in enumerate(zip(label_maps, per_image)):
            try:
                segments.append(_masks_and_classes(label_map, class_of, do_reduce_labels))
            except ValueError as error:
                raise ValueError(f"label map {index}: {error}") from error
        # Not batched: every image has its own number of masks.
        for name, arrays in zip(("mask_labels", "class_labels"), zip(*segments)):
            inputs[name] = [torch.from_numpy(array) if return_tensors == "pt" else array for array in arrays]
        return inputs

    def _read_label_maps(
        self,
        segmentation_maps: ImageInput,
        images: list[np.ndarray],
        do_reduce_labels: bool,
        has_instances: bool = False,
        **kwargs,
    ) -> list[np.ndarray]:
        label_maps = super()._read_label_maps(
            segmentation_maps, images, do_reduce_labels=do_reduce_labels and not has_instances, **kwargs
        )
        # Ids of instances make room for the 255 of the padding: any number can be an id.
        return [label_map + IGNORED + 1 for label_map in label_maps] if has_instances else label_maps

    def _check_settings(self, *, window_size: int | None, window_stride: int | None, **kwargs) -> None:
        for name, value in (("window_size", window_size), ("window_stride", window_stride)):
            if value is not None:
                raise ValueError(f"{name}: expected None, as the model sees images whole, got {value}")
        super()._check_settings(window_size=None, window_stride=None, **kwargs)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Masks and their classes to label maps, int64 (height, width), one per image.

        The score of a class at a pixel is the sum over queries of the probability that the query is of the class,
        times the probability that the pixel is in its mask, whose logits are upsampled to the size of `pixel_values`.

        outputs: with `class_queries_logits` (batch, num_queries, num_labels + 1), `masks_queries_logits` (batch,
            num_queries, height, width) and, if the images were padded, `image_sizes`.
        target_sizes: (height, width) per image, to which the scores are resized bilinearly before the classes are
            compared; usually the sizes of the original images. Without, label maps have the size that the image has in
            `pixel_values`.
        return_segmentation_scores: return objects with `segmentation` and `segmentation_scores`, the float32 scores
            (num_labels, height, width) it was chosen from. They need memory for all classes at full size.
        """
        target_sizes = self._check_outputs(outputs, target_sizes)
        results = []
        for index, (class_logits, mask_logits, image_size) in enumerate(_images_of(outputs)):
            size = image_size if target_sizes is None else target_sizes[index]
            class_probs = class_logits.softmax(dim=-1)[:, :-1]  # without the class of what is no object
            mask_probs = _show_image(mask_logits, image_size).sigmoid()
            if return_segmentation_scores:
                scores = upsampled(_class_scores(class_probs, mask_probs), size)
                results.append(
                    SemanticSegmentationPostProcessorOutput(
                        data={"segmentation": scores.argmax(dim=0), "segmentation_scores": scores}
                    )
                )
            else:
                results.append(_label_map(class_probs, mask_probs, size))
        return results

    def _check_outputs(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | Tensor | None
    ) -> list[tuple[int, int]] | None:
        """Return the target sizes, checked against the outputs."""
        masks = getattr(outputs, "masks_queries_logits", None)
        if masks is None:
            raise ValueError(
                f"expected the outputs of the model, which have `masks_queries_logits`, got {type(outputs).__name__}"
            )
        target_sizes = checked_target_sizes(target_sizes, len(masks))
        if getattr(outputs, "image_sizes", None) is None and target_sizes is not None:
            self._refuse_padding(target_sizes, masks.shape[-2:])
        return target_sizes

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict]:
        """Find instances, one dictionary per image, in what shows the image.

        As [`Mask2FormerImageProcessor.post_process_instance_segmentation`] does, which see; without `target_sizes`, at
        the size that the image has in `pixel_values`.
        """
        return _per_image(
            Mask2FormerImageProcessorPil().post_process_instance_segmentation,
            outputs,
            self._check_outputs(outputs, target_sizes),
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
            return_coco_annotation=return_coco_annotation,
            return_binary_maps=return_binary_maps,
        )

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: set[int] | None = None,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
    ) -> list[dict]:
        """Find panoptic segments, one dictionary per image, in what shows the image.

        As [`Mask2FormerImageProcessor.post_process_panoptic_segmentation`] does, which see; without `target_sizes`, at
        the size that the image has in `pixel_values`.
        """
        return _per_image(
            Mask2FormerImageProcessorPil().post_process_panoptic_segmentation,
            outputs,
            self._check_outputs(outputs, target_sizes),
            threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_mask_area_threshold=overlap_mask_area_threshold,
            label_ids_to_fuse=label_ids_to_fuse or set(),
        )


def _masks_and_classes(
    label_map: np.ndarray, class_of: dict[int, int] | None, do_reduce_labels: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return a label map's masks (num_masks, height, width), float32, and their classes (num_masks,), int64.

    It is of classes, or of instances with `class_of`.
    """
    ids = np.unique(label_map)
    ids = ids[ids != IGNORED]
    if class_of is None:
        classes = ids
    else:
        instances = ids - IGNORED - 1
        no_class = 0 if do_reduce_labels else IGNORED
        class_of = {no_class: no_class} | class_of
        unknown = [instance for instance in instances.tolist() if instance not in class_of]
        if unknown:
            raise ValueError(f"expected ids that instance_id_to_semantic_id has, got {unknown[:5]}")
        classes = np.array([class_of[instance] for instance in instances.tolist()], dtype=np.int64)
        ids, classes = ids[classes != no_class], classes[classes != no_class] - do_reduce_labels
    return (label_map == ids[:, None, None]).astype(np.float32), classes.astype(np.int64)


def _size(size: Any) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)


def _images_of(outputs: Any) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
    """Yield class logits, mask logits and the size of every image.

    They are (num_queries, num_labels + 1) and (num_queries, height, width), both float32; the size is without padding,
    in pixels of the model's input.
    """
    image_sizes = getattr(outputs, "image_sizes", None)
    for index, mask_logits in enumerate(outputs.masks_queries_logits):
        image_size = [length * MASK_STRIDE for length in mask_logits.shape[1:]]
        if image_sizes is not None:
            image_size = image_sizes[index]
        yield outputs.class_queries_logits[index].float(), mask_logits.float(), _size(image_size)


def _show_image(mask_logits: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Mask logits at the resolution of the model's input, without what shows padding."""
    height, width = image_size
    return F.interpolate(mask_logits[None], scale_factor=MASK_STRIDE, mode="bilinear")[0, :, :height, :width]


def _class_scores(class_probs: Tensor, mask_probs: Tensor) -> Tensor:
    """Return the scores of the classes (num_labels, height, width).

    Of queries with classes (num_queries, num_labels) and masks (num_queries, height, width).
    """
    return torch.einsum("qc,qhw->chw", class_probs, mask_probs)


def _label_map(class_probs: Tensor, mask_probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the argmax of the scores of the classes at another size, of which never all are there at once."""
    return upsampled_argmax_of_rows(
        lambda top, bottom: _class_scores(class_probs, mask_probs[:, top:bottom]),
        (class_probs.shape[1], *mask_probs.shape[1:]),
        size,
        mask_probs.device,
    )


def _per_image(
    post_process: Callable[..., list[dict]],
    outputs: Any,
    target_sizes: list[tuple[int, int]] | None,
    **kwargs,
) -> list[dict]:
    """Return what transformers' `post_process` finds in every image, once the padding is cut off its masks.

    On the CPU, as it makes its maps there. It resizes masks to 384 x 384 first; those without padding it gets as they
    are, so that the results are its own.
    """
    results = []
    for index, (class_logits, mask_logits, image_size) in enumerate(_images_of(outputs)):
        if image_size != tuple(length * MASK_STRIDE for length in mask_logits.shape[1:]):
            mask_logits = _show_image(mask_logits, image_size)
        image_outputs = SimpleNamespace(
            class_queries_logits=class_logits[None].cpu(), masks_queries_logits=mask_logits[None].cpu()
        )
        target_size = image_size if target_sizes is None else target_sizes[index]
        results += post_process(image_outputs, target_sizes=[target_size], **kwargs)
    return results


__all__ = ["OffsetMask2FormerImageProcessor"]
