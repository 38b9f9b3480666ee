"""A network of one size that the user chooses, which photos are stretched to."""

from collections.abc import Iterator, Sequence

from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from offseg_hf.inference.segmenter import Segmenter


PROTOCOL = "not the official protocol: photos are stretched to {1}x{0} and seen whole"


def images_of(inputs: BatchFeature) -> Iterator[Tensor]:
    """Yield what the network gets of a photo: its windows, or the whole image; each (1, channels, height, width)."""
    pixel_values = inputs["pixel_values"]
    if "windows" not in inputs:
        yield pixel_values
        return
    for top, left, bottom, right in inputs["windows"][0].tolist():
        yield pixel_values[..., top:bottom, left:right]


def stretch(segmenter: Segmenter, size: tuple[int, int], photos: Sequence[Image.Image]) -> bool:
    """Let a model see photos at one size, (height, width), whole.

    Args:
        segmenter: The model, whose image processor is changed.
        size: Of the images that the network gets.
        photos: To try it on, also on their sides: not only photos of their shape are to be seen so.

    Returns:
        Whether that takes another protocol: not where all that the network gets of photos is of the size already.

    Raises:
        ValueError: For an image processor that gives images of other sizes.
    """
    photos = [*photos, *(photo.transpose(Image.Transpose.ROTATE_90) for photo in photos)]
    if _sizes(segmenter, photos) == {size}:
        return False
    processor = segmenter.processor
    processor.size = type(processor.size)(height=size[0], width=size[1])
    processor.do_resize = True
    for name, value in {"do_center_crop": False, "window_size": None}.items():
        if hasattr(processor, name):
            setattr(processor, name, value)
    for height, width in _sizes(segmenter, photos) - {size}:
        raise ValueError(
            f"the model cannot see photos at {size[0]} x {size[1]} (height x width): its {type(processor).__name__} "
            f"makes {height} x {width} of it: pass --size {height} {width}"
        )
    return True


def _sizes(segmenter: Segmenter, photos: Sequence[Image.Image]) -> set[tuple[int, int]]:
    images = (image for photo in photos for image in images_of(segmenter.prepare(photo)))
    return {(image.shape[-2], image.shape[-1]) for image in images}
