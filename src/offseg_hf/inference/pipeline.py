"""transformers' pipeline for image segmentation, as quick and exact as the image processors here allow."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature, ImageSegmentationPipeline

from offseg_hf.inference.windows import label_maps_of_windows
from offseg_hf.models.image_operations import read_from, read_image
from offseg_hf.models.image_processing_offseg import OffSegImageProcessor


class OffSegImageSegmentationPipeline(ImageSegmentationPipeline):
    """[`ImageSegmentationPipeline`] that gives the same for models of this package, from more images and sooner.

    The stock pipeline turns every image into 8-bit RGB itself and saturates those of 16 bits, takes the scores of all
    classes at every pixel from a model, and makes the mask of every class from 64-bit integers. With an image
    processor of this package an image gives the same as it does without the pipeline, whatever the way in; with any
    other it is the stock pipeline.
    """

    def preprocess(self, image: Any, subtask: str | None = None, timeout: float | None = None) -> BatchFeature:
        """Read an image, and prepare it as its image processor is set."""
        processor = self.image_processor
        if not isinstance(processor, OffSegImageProcessor):
            return super().preprocess(image, subtask=subtask, timeout=timeout)
        pixels = read_from(image, "image", lambda picture: read_image(picture, processor.do_convert_rgb), timeout)
        inputs = processor(images=[pixels], input_data_format="channels_first", return_tensors="pt").to(self.dtype)
        inputs["target_size"] = [pixels.shape[1:]]
        return inputs

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        if "windows" not in model_inputs:
            return super()._forward(model_inputs)
        inputs = {name: model_inputs[name] for name in ("pixel_values", "windows", "image_sizes")}
        sizes = [tuple(np.ravel(size).tolist()) for size in model_inputs["target_size"]]  # of a batch: [(h, w)] each
        maps = label_maps_of_windows(lambda crops: self.model(crops).logits, **inputs, target_sizes=sizes)
        return {"label_map": maps, "target_size": sizes}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        subtask: str | None = None,
        threshold: float = 0.9,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.5,
    ) -> list[dict[str, Any]]:
        """Make a mask for every class in a label map; what else there is, as the stock pipeline does."""
        if "label_map" in model_outputs:
            if subtask not in (None, "semantic"):
                raise ValueError(f"Subtask {subtask} is not supported for model {type(self.model)}, expected semantic")
            return self._masks(model_outputs["label_map"][0].cpu().numpy())
        return super().postprocess(model_outputs, subtask, threshold, mask_threshold, overlap_mask_area_threshold)

    def _masks(self, label_map: np.ndarray) -> list[dict[str, Any]]:
        id2label = self.model.config.id2label
        number = np.bincount(label_map.ravel(), minlength=len(id2label))
        narrow = label_map.astype(np.min_scalar_type(len(number)))
        return [
            {"score": None, "label": id2label[label], "mask": Image.fromarray((narrow == label).view(np.uint8) * 255)}
            for label in np.flatnonzero(number).tolist()
        ]
