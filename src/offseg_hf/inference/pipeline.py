"""transformers' pipeline for image segmentation, which leaves the reading of images to the image processors here."""

from typing import Any

from transformers import BatchFeature, ImageSegmentationPipeline

from offseg_hf.models.image_operations import read_from, read_image
from offseg_hf.models.image_processing_offseg import OffSegImageProcessor


class OffSegImageSegmentationPipeline(ImageSegmentationPipeline):
    """[`ImageSegmentationPipeline`], which turns every image into 8-bit RGB itself and saturates those of 16 bits.

    With an image processor of this package, an image gives the same as it does without the pipeline, whatever the way
    in. With any other it is the stock pipeline.
    """

    def preprocess(  # type: ignore[override] # as the stock pipeline's
        self, image: Any, subtask: str | None = None, timeout: float | None = None
    ) -> BatchFeature:
        """Return the model's inputs, and the size of the image."""
        processor = self.image_processor
        if not isinstance(processor, OffSegImageProcessor):
            return super().preprocess(image, subtask=subtask, timeout=timeout)
        pixels = read_from(image, "image", lambda picture: read_image(picture, processor.do_convert_rgb), timeout)
        inputs = processor(images=[pixels], input_data_format="channels_first", return_tensors="pt").to(self.dtype)
        inputs["target_size"] = [pixels.shape[1:]]
        return inputs
