"""Models of segmentation_models.pytorch (smp) with offset learning, in a process of their own.

`python tests/adaptation/smp_support.py FOLDER` writes what came of them, among it what a fresh process loads of what
was saved there.

It runs in processes of its own, as smp imports torchvision, which must not be importable in those of other tests (see
Makefile). Where torchvision fits the build of torch, everything is importable at once and in any order. So it is here:
beside another build only torchvision's compiled operators are missing, which nothing of smp calls. They are declared;
torchvision, timm, smp, transformers and offseg_hf are the real ones.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


SMP_PATH = Path(sys.prefix) / "timm"
CLASSES = 5
SETTINGS = {"encoder_weights": None, "classes": CLASSES}
SMALL_UNET = {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": (16, 8, 8), **SETTINGS}
# Name of the case: class, arguments. Encoders of smp's own, of torchvision's style, and of timm ("tu-").
MODELS = {
    "Unet": ("Unet", SMALL_UNET),
    "FPN": ("FPN", {"encoder_name": "tu-mobilenetv3_small_050", "decoder_dropout": 0.0, **SETTINGS}),
    "DeepLabV3Plus": ("DeepLabV3Plus", {"encoder_name": "mobilenet_v2", "decoder_channels": 32, **SETTINGS}),
    "Segformer": ("Segformer", {"encoder_name": "mit_b0", "decoder_segmentation_channels": 32, **SETTINGS}),
    "UPerNet": ("UPerNet", {"encoder_name": "tu-convnext_atto", "decoder_channels": 32, **SETTINGS}),
    "auxiliary head": ("Unet", {**SMALL_UNET, "aux_params": {"classes": 3, "dropout": None}}),
    "activation": ("Unet", {**SMALL_UNET, "activation": "softmax2d"}),
}


def import_smp():
    sys.path.append(str(SMP_PATH))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    import segmentation_models_pytorch as smp

    smp.kept_library = library  # the declarations live as long as it does
    return smp


def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def build(smp, case: str) -> nn.Module:
    """In eval mode, as if it had seen images, and with a bias in its classifier, which smp starts at zero."""
    torch.manual_seed(0)
    class_name, arguments = MODELS[case]
    model = getattr(smp, class_name)(**arguments)
    for _ in range(5):
        model.train()(images())
    nn.init.normal_(model.segmentation_head[0].bias, std=0.1)
    return model.eval()


@torch.no_grad()
def outputs(model: nn.Module) -> dict[str, Tensor]:
    output = model(images())
    return {"masks": output[0], "labels": output[1]} if isinstance(output, tuple) else {"masks": output}


def results_of(smp, case: str, folder: Path) -> dict:
    """Of one case, all that can be said in numbers and words; outputs go to a file."""
    from offseg_hf import with_offset_learning
    from offseg_hf.adaptation.apply import apply_offset_learning

    stock = build(smp, case)
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    model = apply_offset_learning(stock)
    fresh = apply_offset_learning(stock, warm_start=False)
    tensors = {"stock": outputs(stock), "warm": outputs(model), "from scratch": outputs(fresh)}

    trained, missing = {"warm": model, "from scratch": fresh}, {}
    for name, part in trained.items():
        optimizer = torch.optim.SGD(part.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            sum(output.square().mean() for output in _tuple(part.train()(images()))).backward()
            optimizer.step()
        head = part.segmentation_head.named_parameters()
        missing[name] = [key for key, p in head if p.grad is None or not p.grad.any()]
        tensors[f"{name}, trained"] = outputs(part.eval())
        part.save_pretrained(folder / case / name)
        loaded = with_offset_learning(type(stock)).from_pretrained(folder / case / name)
        loaded.save_pretrained(folder / case / f"{name}, again")
        tensors[f"{name}, loaded"] = outputs(loaded)
    torch.save(model, folder / case / "pickled.pth")
    tensors["warm, pickled"] = outputs(torch.load(folder / case / "pickled.pth", weights_only=False))
    tensors["warm, copied"] = outputs(deepcopy(model))

    named = {
        f"{name}/{output}": x.contiguous() for name, output_of in tensors.items() for output, x in output_of.items()
    }
    save_file(named, folder / case / "outputs.safetensors")
    return {
        "is instance": isinstance(model, type(stock)),
        "class": type(model).__name__,
        "one class": type(model) is type(fresh) is with_offset_learning(type(stock)),
        "stock unchanged": all(torch.equal(x, before[name]) for name, x in stock.state_dict().items()),
        "without gradient": missing,
        "head": [type(layer).__name__ for layer in model.segmentation_head],
        "downloads": model.config["encoder_weights"],
    }


def messages(smp) -> dict[str, str]:
    """What the errors say."""
    from offseg_hf.adaptation.apply import apply_offset_learning

    said = {}

    @contextmanager
    def said_by(case: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            said[case] = str(error)

    with said_by("one class"):
        apply_offset_learning(smp.Unet(**SMALL_UNET | {"classes": 1}))
    for case, change in {
        "norm after the classifier": lambda head: head.append(nn.BatchNorm2d(CLASSES)),
        "other number of classes": lambda head: head.__setitem__(0, nn.Conv2d(8, CLASSES + 1, 3, padding=1)),
        "no weights": lambda head: head.__setitem__(0, nn.Identity()),
    }.items():
        with said_by(case):
            apply_offset_learning(_changed(smp.Unet(**SMALL_UNET), change))
    with said_by("unknown name"):
        apply_offset_learning(smp.Unet(**SMALL_UNET), "segmentation_head.7")
    with said_by("twice"):
        apply_offset_learning(apply_offset_learning(smp.Unet(**SMALL_UNET)))
    return said


def frozen_encoder(smp) -> dict[str, bool]:
    """smp's freeze_encoder holds in the result."""
    from offseg_hf.adaptation.apply import apply_offset_learning

    model = smp.Unet(**SMALL_UNET)
    model.freeze_encoder()
    model = apply_offset_learning(model).train()
    return {
        "encoder learns": any(p.requires_grad for p in model.encoder.parameters()),
        "encoder's norms train": any(m.training for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)),
        "head learns": all(p.requires_grad for p in model.segmentation_head.parameters()),
    }


def by_name(smp) -> bool:
    """The classifier named by hand is the one that is found."""
    from offseg_hf.adaptation.apply import apply_offset_learning

    model = build(smp, "Unet")
    found, named = apply_offset_learning(model), apply_offset_learning(model, "segmentation_head.0")
    masks, expected = (outputs(part)["masks"] for part in (found, named))
    return found.config == named.config and torch.allclose(masks, expected, rtol=1e-4, atol=1e-4)


def reload(smp, folder: Path) -> None:
    from offseg_hf import with_offset_learning

    for case, (class_name, _) in MODELS.items():
        loaded = with_offset_learning(getattr(smp, class_name)).from_pretrained(folder / case / "warm")
        save_file({k: x.contiguous() for k, x in outputs(loaded).items()}, folder / case / "reloaded.safetensors")


def _tuple(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _changed(model: nn.Module, change: Callable[[nn.Sequential], object]) -> nn.Module:
    change(model.segmentation_head)
    return model


def main(folder: Path) -> None:
    smp = import_smp()
    with fresh_process(lambda: reload(smp, folder)):
        results = {case: results_of(smp, case, folder) for case in MODELS}
    others = {"messages": messages(smp), "frozen encoder": frozen_encoder(smp), "by name": by_name(smp)}
    (folder / "results.json").write_text(json.dumps({"models": results, **others}))


@contextmanager
def fresh_process(function: Callable[[], None]) -> Iterator[None]:
    """Runs `function` at the end of the block, in a process that has seen nothing of it."""
    waiting, end_of_block = os.pipe()
    child = os.fork()
    if not child:
        os.close(end_of_block)
        os.read(waiting, 1)  # nothing comes: until it is closed
        function()
        os._exit(0)
    os.close(waiting)
    yield
    os.close(end_of_block)
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
