"""The image segmentation part of transformers' pipeline tests, which the source distribution does not carry."""

import numpy as np
from PIL import Image
from transformers import ImageSegmentationPipeline


class ImageSegmentationPipelineTests:
    """`PipelineTesterMixin` asks for a pipeline and examples, has them checked, and then runs them in batches."""

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **_):
        pipeline = ImageSegmentationPipeline(
            model=model, tokenizer=tokenizer, image_processor=image_processor, dtype=dtype
        )
        gradients = Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(90)
        sizes = (90, 60), (60, 40), (180, 120)  # of one aspect ratio, so that they can be a batch
        return pipeline, [gradient.resize(size).convert("RGB") for gradient, size in zip(gradients, sizes)]

    def run_pipeline_test(self, pipeline, examples) -> None:
        one_by_one = [pipeline(example) for example in examples]
        for outputs in (
            pipeline(examples),
            pipeline(examples, batch_size=2),
            list(pipeline(example for example in examples)),
        ):
            for segments, expected, example in zip(outputs, one_by_one, examples, strict=True):
                masks = np.stack([np.asarray(segment["mask"]) for segment in segments])
                names = np.array([segment["label"] for segment in segments])[masks.argmax(axis=0)]
                places = np.stack([np.asarray(segment["mask"]) for segment in expected]).argmax(axis=0)
                # Batches are rounded otherwise, which decides where two classes are equally good.
                assert np.mean(names != np.array([segment["label"] for segment in expected])[places]) < 0.002
                assert masks.shape[1:] == example.size[::-1]
                assert (masks.sum(axis=0, dtype=int) == 255).all()  # every pixel belongs to one segment
                assert all(segment["label"] in pipeline.model.config.label2id for segment in segments)
