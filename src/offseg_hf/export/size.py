"""A network of one size that the user chooses, which photos are stretched to."""

from collections.abc import Sequence

from PIL import Image

from offseg_hf.inference.segmenter import Segmenter


PROTOCOL = "not the official protocol: photos are stretched to {1}x{0} and seen whole"


def sees(segmenter: Segmenter, photo: Image.Image) -> list[tuple[int, int]]:
    """Return the (height, width) of each image that the network gets of a photo: its windows, or the whole."""
    inputs = segmenter.prepare(photo)
    if "windows" not in inputs:
        return [tuple(inputs["pixel_values"].shape[-2:])]
    return [(bottom - top, right - left) for top, left, bottom, right in inputs["windows"][0].tolist()]


def stretch(segmenter: Segmenter, size: tuple[int, int], photos: Sequence[Image.Image]) -> bool:
    """Let a model see photos at one size, (height, width), whole.

    Args:
        segmenter: The model, whose image processor is changed.
        size: Of the images that the network gets.
        photos: To try it on.

    Returns:
        Whether that takes another protocol: not where all that the network gets of the photos is of the size already.

    Raises:
        ValueError: For an image processor that gives images of other sizes.
    """
    if all(seen == size for photo in photos for seen in sees(segmenter, photo)):
        return False
    processor = segmenter.processor
    processor.size = type(processor.size)(height=size[0], width=size[1])
    processor.do_resize = True
    for name, value in {"do_center_crop": False, "window_size": None}.items():
        if hasattr(processor, name):
            setattr(processor, name, value)
    for photo in photos:
        for height, width in sees(segmenter, photo):
            if (height, width) != size:
                raise ValueError(
                    f"the model cannot see photos at {size[0]} x {size[1]} (height x width): its "
                    f"{type(processor).__name__} makes {height} x {width} of it: pass --size {height} {width}"
                )
    return True
