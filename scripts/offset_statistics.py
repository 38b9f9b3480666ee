"""What offset learning does in a trained model: where classes look, how far they move, and what of it the logits see.

python scripts/offset_statistics.py --model runs/camvid/offseg-t/both-0/last --dataset data/camvid --split test

Of each class: the share of the photo that it attends to (the exponential of its attention's entropy, over the number
of pixels), the length of its representation, and how far the photo moves it; what all classes have in common is left
out of both lengths, as the layer norm of the logits takes it out. Of the logits before that norm: the standard
deviation of what the representations give, and of what each branch adds. Means over photos.
"""

import argparse
import sys
from collections.abc import Iterator

import torch
from benchmark.measure import markdown_table
from torch import Tensor

from offseg_hf.data.dataset import load_segmentation_data
from offseg_hf.evaluation.samples import SampleReader
from offseg_hf.inference.segmenter import Segmenter
from offseg_hf.models.offset_learning import OffsetLearning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or name on the Hub")
    parser.add_argument("--dataset", required=True, help="as of `offseg evaluate`")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--photos", type=int, default=24, help="how many, evenly spaced in the split")
    arguments = parser.parse_args()
    if arguments.photos < 1:
        parser.error(f"expected --photos of 1 or more, got {arguments.photos}")
    try:
        segmenter = Segmenter(arguments.model)
        data = load_segmentation_data(arguments.dataset, arguments.split)
        heads = [module for module in segmenter.model.modules() if isinstance(module, OffsetLearning)]
        if not heads:
            raise ValueError(f"{arguments.model}: expected a model with offset learning over classes, got one without")
        indices = range(0, len(data), max(1, len(data) // arguments.photos))[: arguments.photos]
        reader = SampleReader(data, segmenter.processor, indices)
        found = list(statistics(segmenter, heads[0], reader))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    per_class, parts = (torch.stack(values).mean(dim=0) for values in zip(*found))
    rows = [
        [name, f"{100 * attended:.0f} %", f"{length:.2f}", f"{offset:.2f}"]
        for name, (attended, length, offset) in zip(segmenter.names, per_class.tolist())
    ]
    print(markdown_table(["class", "attends to", "representation", "offset"], rows))
    names = ("representations", "class branch", "feature branch")
    print("\nlogits: " + ", ".join(f"{name} {value:.3f}" for name, value in zip(names, parts.tolist())))


@torch.no_grad()
def statistics(segmenter: Segmenter, head: OffsetLearning, reader: SampleReader) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every map of features that the head sees: (classes, 3) and (3,), in the order of the tables."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    for index in range(len(reader)):
        segmenter.model(**reader[index].views[0].to(segmenter.device))
    hook.remove()
    for features in seen:
        features = features.flatten(1).T  # (pixels, channels)
        attention = class_attention(head, features)
        attended = torch.special.entr(attention).sum(dim=1).exp() / len(features)
        offset = class_offset(head, features)
        lengths = [centred(x, 0).norm(dim=1) for x in (head.class_representation[0], offset)]
        parts = [centred(part, 1).std() for part in logit_parts(head, features, offset)]
        yield torch.stack([attended, *lengths], dim=1), torch.stack(parts)


def class_attention(head: OffsetLearning, features: Tensor) -> Tensor:
    """Where each class looks among the pixels (pixels, channels): (classes, pixels), rows sum to one."""
    return head.compare(features, head.class_representation)[0].softmax(dim=0).T


def class_offset(head: OffsetLearning, features: Tensor) -> Tensor:
    """By how much the pixels (pixels, channels) move the class representations: (classes, channels)."""
    if head.class_offset_proj is None:
        return torch.zeros_like(head.class_representation[0])
    return head.class_offset_proj(class_attention(head, features) @ features)


def logit_parts(head: OffsetLearning, features: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms, (pixels, classes) each, of the similarity: E·W, E·ΔW and ΔE·(W + ΔW); `offset` is ΔW."""
    representation = head.class_representation[0]
    own = head.compare(features, head.class_representation)[0]
    feature_offset = torch.zeros_like(features)
    if head.feature_offset_proj is not None:
        feature_offset = head.feature_offset_proj(own.softmax(dim=1) @ representation)
    return own, features @ offset.T, feature_offset @ (representation + offset).T


def centred(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim=dim, keepdim=True)


if __name__ == "__main__":
    main()
