"""`apply_offset_learning` finds the classifier, continues it and leaves everything else as it is."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    DPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    Tipsv2DptConfig,
    UperNetConfig,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from offseg_hf import OffSegConfig, OffSegForSemanticSegmentation, OffsetLearning, apply_offset_learning
from offseg_hf.adaptation.apply import find_classifier
from tests.comparison import assert_same_gradients, assert_same_outputs, assert_same_weights, sure_pixels
from tests.semantic_models import NAMES, SIZE, classifier_name, images, label_maps, small_model


AUXILIARY = ("upernet-convnext", "upernet-swin", "dpt", "beit", "data2vec-vision")  # have a second head for training


def head_of(model: nn.Module) -> OffsetLearning:
    (head,) = (module for module in model.modules() if isinstance(module, OffsetLearning))
    return head


@pytest.mark.parametrize("name", NAMES)
def test_classifier_is_found_and_replaced(name):
    base = small_model(name)
    expected = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    for training in (False, True):
        model = apply_offset_learning(base.train(training))
        assert model.config.classifier == find_classifier(base) == classifier_name(name)
        assert model.training == head_of(model).training == model.model.training == training
    # The model that was given is as it was, and shares nothing with the new one.
    assert type(base.get_submodule(classifier_name(name))) is nn.Conv2d
    assert_same_weights(base, expected)
    assert not {p.data_ptr() for p in base.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert base.config is not model.model.config
    # All other weights are those of the given model.
    replaced = f"{classifier_name(name)}."
    kept = {key: tensor for key, tensor in expected.items() if not key.startswith(replaced)}
    actual = {key: tensor for key, tensor in model.model.state_dict().items() if not key.startswith(replaced)}
    assert_same_weights(actual, kept)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_warm_start_gives_the_same_label_map(name):
    base = small_model(name)
    logits = base(images()).logits
    ours = apply_offset_learning(base)(images()).logits
    assert_same_outputs(ours, logits)
    upsampled, ours = (F.interpolate(x, size=(SIZE, SIZE), mode="bilinear") for x in (logits, ours))
    sure = sure_pixels(upsampled)
    assert sure.float().mean() > 0.9
    assert torch.equal(ours.argmax(dim=1)[sure], upsampled.argmax(dim=1)[sure])


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_outputs_are_the_models_own(name):
    base = small_model(name)
    model = apply_offset_learning(base)
    arguments = {"pixel_values": images(), "labels": label_maps(), "output_hidden_states": True}
    expected, output = base(**arguments), model(**arguments)
    assert type(output) is type(expected) and output.keys() == expected.keys()
    assert_same_outputs((output.loss, *output.hidden_states), (expected.loss, *expected.hidden_states))
    expected, output = (m(images(), labels=label_maps(), return_dict=False) for m in (base, model))
    assert type(output) is tuple and len(output) == len(expected)
    assert_same_outputs(output[:2], expected[:2])


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_head_goes_on_training(name):
    base = small_model(name)
    model = apply_offset_learning(base)
    model(images(), labels=label_maps()).loss.backward()
    gradients = [p.grad for p in model.model.auxiliary_head.parameters()]
    assert gradients and all(gradient.abs().max() > 0 for gradient in gradients)
    base(images(), labels=label_maps()).loss.backward()
    assert_same_gradients(gradients, [parameter.grad for parameter in base.auxiliary_head.parameters()])


@pytest.mark.parametrize("name, warm_start", [("segformer", False), *((name, True) for name in NAMES)])
def test_every_parameter_has_a_gradient(name, warm_start):
    """Every one that had one before; and those of offset learning, of which the projections start at zero."""
    base = small_model(name)
    base(images(), labels=label_maps()).loss.backward()
    model = apply_offset_learning(base, warm_start=warm_start)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in head_of(model).parameters())
    model.zero_grad()
    model(images(), labels=label_maps()).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head_of(model).parameters())
    for key, parameter in base.named_parameters():
        if not key.startswith(f"{classifier_name(name)}.") and parameter.grad is not None:
            assert model.model.get_parameter(key).grad is not None, key


# What has gradients learns: some are trained, with a second head, without one and without a transformer.
LEARNING = [
    name if name in ("segformer", "upernet-convnext", "mobilenet_v2") else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]


@pytest.mark.parametrize("name", LEARNING)
def test_training_improves_on_the_original(name):
    """Offset learning alone: everything before it is frozen, as the classifier it was made of."""
    base = small_model(name)
    original = base(images(), labels=label_maps()).loss.item()
    model = apply_offset_learning(base)
    model.requires_grad_(False)
    offsets = [proj.weight.requires_grad_() for proj in head_of(model).offset_projs()]
    optimizer = torch.optim.Adam(offsets, lr=0.001)
    for _ in range(8):
        optimizer.zero_grad()
        model(images(), labels=label_maps()).loss.backward()
        optimizer.step()
    assert model(images(), labels=label_maps()).loss.item() < original - 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_from_scratch_is_the_official_initialisation(name):
    original = small_model(name)
    torch.manual_seed(0)
    model = apply_offset_learning(original, warm_start=False)
    head = head_of(model)
    assert model.config.normalize_logits and head.logit_norm is not None
    for weight in (head.class_representation, *(proj.weight for proj in head.offset_projs())):
        assert 0.015 < weight.std() < 0.025
    assert head.bias is None and len(head.offset_projs()) == 2


@pytest.mark.parametrize("name", LEARNING)
def test_training_from_scratch(name):
    model = apply_offset_learning(small_model(name), warm_start=False)
    optimizer = torch.optim.Adam(head_of(model).parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(model(images(), labels=label_maps()).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("branches", [(True, False), (False, True), (False, False)])
def test_branches(branches):
    model = apply_offset_learning(
        small_model("segformer"), use_class_offset=branches[0], use_feature_offset=branches[1]
    )
    head = head_of(model)
    assert (head.class_offset_proj is not None, head.feature_offset_proj is not None) == branches
    assert (model.config.use_class_offset, model.config.use_feature_offset) == branches


@pytest.mark.parametrize("name", ["segformer", "upernet-convnext", "mobilevit"])
@torch.no_grad()
def test_samples_do_not_see_each_other(name):
    model = apply_offset_learning(small_model(name))
    for proj in head_of(model).offset_projs():
        nn.init.normal_(proj.weight, std=0.3)
    one_by_one = torch.cat([model(image[None]).logits for image in images()])
    assert_same_outputs(model(images()).logits, one_by_one)
    assert (one_by_one - small_model(name)(images()).logits).abs().max() > 0.01  # the offsets count


def test_nothing_runs():
    """Sizes as published, on a device that cannot compute."""
    backbone = ConvNextConfig(hidden_sizes=[96, 192, 384, 768], out_features=["stage1", "stage2", "stage3", "stage4"])
    with torch.device("meta"):
        base = AutoModelForSemanticSegmentation.from_config(UperNetConfig(backbone_config=backbone, num_labels=150))
    start = time.perf_counter()
    model = apply_offset_learning(base)
    assert time.perf_counter() - start < 10
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    added = model.num_parameters() - base.num_parameters()
    assert added == 2 * 512**2  # the two projections: weight and bias went on


def test_name_by_hand():
    model = apply_offset_learning(small_model("dpt"), "head.head.4")
    assert model.config.classifier == "head.head.4"


def test_linear_classifier_of_another_model():
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(Tipsv2DptConfig(num_labels=7))
    assert find_classifier(model) == "decoder.head"
    assert type(model.get_submodule("decoder.head")) is nn.Linear


def test_as_many_classes_as_channels():
    """The name decides; and where it does not, the user."""
    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=256))
        assert find_classifier(model) == "decode_head.classifier"
        model = AutoModelForSemanticSegmentation.from_config(DPTConfig(num_labels=256, is_hybrid=False))
    with pytest.raises(
        ValueError,
        match=r"looked for one convolution or linear layer with 256 outputs \(config.num_labels\), outside of "
        r"auxiliary heads, and found \d+\. Layers: .*head\.head\.4 .*classifier='head\.head\.4'\)",
    ):
        apply_offset_learning(model)
    assert apply_offset_learning(model, "head.head.4").config.num_labels == 256


def test_nothing_found():
    base = small_model("segformer")
    base.decode_head.classifier = nn.Identity()
    with pytest.raises(ValueError, match=r"5 outputs.*found none\. Layers: .*decode_head\.linear_fuse"):
        apply_offset_learning(base)


def test_wrong_names():
    base = small_model("segformer")
    with pytest.raises(ValueError, match=r"no submodule 'head'.*decode_head\.classifier"):
        apply_offset_learning(base, "head")
    with pytest.raises(
        ValueError, match=r"SegformerForSemanticSegmentation\.decode_head\.batch_norm cannot be replaced"
    ):
        apply_offset_learning(base, "decode_head.batch_norm")
    with pytest.raises(ValueError, match="has 16 outputs where config.num_labels is 5"):
        apply_offset_learning(base, "decode_head.linear_fuse")


def test_one_label():
    with pytest.raises(ValueError, match="has one label.*load the model with num_labels=2"):
        apply_offset_learning(SegformerForSemanticSegmentation(SegformerConfig(num_labels=1)))


def test_already_applied():
    model = apply_offset_learning(small_model("segformer"))
    with pytest.raises(ValueError, match=r"has offset learning already, in model\.decode_head\.classifier"):
        apply_offset_learning(model)
    with pytest.raises(ValueError, match="has offset learning already, in offset_learning"):
        apply_offset_learning(OffSegForSemanticSegmentation(OffSegConfig(num_labels=3)))


def test_models_that_could_not_be_loaded_again():
    with pytest.raises(ValueError, match="is SegformerForSemanticSegmentation, got SegformerForImageClassification"):
        apply_offset_learning(SegformerForImageClassification(SegformerConfig(depths=[1] * 4)))

    class Changed(SegformerForSemanticSegmentation):
        pass

    with pytest.raises(ValueError, match="got Changed, which could not be loaded again"):
        apply_offset_learning(Changed(SegformerConfig(depths=[1] * 4)), "decode_head.classifier")


class OwnConfig(PreTrainedConfig):
    model_type = "own_segmenter"


class OwnSegmenter(PreTrainedModel):
    config: OwnConfig

    def __init__(self, config: OwnConfig):
        super().__init__(config)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.predictor = nn.Conv2d(8, config.num_labels, 3, padding=1)
        self.post_init()

    def forward(self, pixel_values, labels=None):
        logits = self.predictor(self.stem(pixel_values).relu())
        loss = None if labels is None else F.cross_entropy(logits, labels, ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


@torch.no_grad()
def test_registered_model_of_ones_own(tmp_path):
    """Its classifier is a 3x3 convolution; with registration it is found, saved and loaded as any other."""
    base = OwnSegmenter(OwnConfig(num_labels=5)).eval()
    with pytest.raises(ValueError, match=r"of a OwnConfig that is none, got OwnSegmenter.*AutoConfig\.register"):
        apply_offset_learning(base)
    AutoConfig.register("own_segmenter", OwnConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(OwnConfig, OwnSegmenter, exist_ok=True)
    model = apply_offset_learning(base)
    assert model.config.classifier == "predictor"
    assert_same_outputs(model(images()).logits, base(images()).logits)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert_same_outputs(loaded(images()).logits, model(images()).logits)


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.UpsamplingBilinear2d(scale_factor=2)
    )


@pytest.mark.parametrize("warm_start", [True, False])
def test_any_module(warm_start):
    torch.manual_seed(0)
    network = make_network()
    model = apply_offset_learning(network, "2", warm_start=warm_start)
    assert type(network[2]) is nn.Conv2d and type(model) is nn.Sequential and model[0] is not network[0]
    assert isinstance(model[2], OffsetLearning)
    if warm_start:
        assert_same_outputs(model(images()), network(images()))

    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(images())[..., :SIZE, :SIZE], label_maps(), ignore_index=255))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]

    loaded = apply_offset_learning(make_network(), "2", warm_start=warm_start)
    loaded.load_state_dict(model.state_dict())
    assert_same_outputs(loaded(images()), model(images()))
    other = apply_offset_learning(make_network(), "2", warm_start=not warm_start)
    with pytest.raises(RuntimeError, match=f"build the model with warm_start={warm_start}"):
        other.load_state_dict(model.state_dict())


class Tokens(nn.Module):
    """A linear classifier of patches, channels last."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.classifier = nn.Linear(8, 5)

    def forward(self, pixel_values):
        return self.classifier(self.patches(pixel_values).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_any_module_with_a_linear_classifier():
    torch.manual_seed(0)
    network = Tokens()
    model = apply_offset_learning(network, "classifier")
    assert_same_outputs(model(images()), network(images()))


def test_any_module_wants_a_name():
    with pytest.raises(
        ValueError,
        match=r"which layer of Tokens classifies pixels cannot be told.*Layers: classifier\. .*'classifier'\)",
    ):
        apply_offset_learning(Tokens())
    with pytest.raises(ValueError, match="It has no convolution with stride 1"):
        apply_offset_learning(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)))
    many = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    with pytest.raises(ValueError, match=r"Layers: 4, 5, .*, 11 \(4 before them\)"):
        apply_offset_learning(many)


def test_mask_classification_has_no_classifier():
    model = type("Mask2FormerForUniversalSegmentation", (nn.Module,), {})()
    with pytest.raises(ValueError, match="classifies masks.*Leave out classifier='class_predictor'"):
        apply_offset_learning(model, "class_predictor")
