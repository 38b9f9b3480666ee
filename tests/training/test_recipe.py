"""The recipes against the official configurations; reading, inheriting, overriding and refusing them."""

import json
import os
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import pytest
import yaml

from offseg_hf.training.checkpoint import require_same_recipe
from offseg_hf.training.recipe import DataRecipe, LossRecipe, ModelRecipe, Recipe, load_recipe
from offseg_hf.training.values import described
from offseg_hf.zoo.presets import PRESETS


CONFIGS = Path(__file__).parents[2] / "configs"
every_recipe = pytest.mark.parametrize("name", PRESETS)

# data set: folder, scale, side of the crop, samples per iteration, iterations
DATA = {
    "ade": ("data/ade/ADEChallengeData2016", (2048, 512), 512, 16, 160_000),
    "cityscapes": ("data/cityscapes", (2048, 1024), 1024, 8, 160_000),
    "cocostuff": ("data/coco_stuff164k", (2048, 512), 512, 16, 80_000),
    "context59": ("data/VOCdevkit/VOC2010", (520, 520), 480, 16, 80_000),
}
PRETRAINED = {
    "offseg-t": "timm/efficientformerv2_s1.snap_dist_in1k",
    "offseg-b": "timm/efficientformerv2_s2.snap_dist_in1k",
    "offseg-l": "timm/efficientformerv2_l.snap_dist_in1k",
    "segformer-b0": "nvidia/mit-b0",
    "segformer-b1": "nvidia/mit-b1",
    "segformer-b2": "nvidia/mit-b2",
    "segformer-b3": "nvidia/mit-b3",
    "segformer-b4": "nvidia/mit-b4",
    "segformer-b5": "nvidia/mit-b5",
    "segnext-t": "./pretrained/mscan_t_20230227-119e8c9f.pth",
    "segnext-s": "./pretrained/mscan_s_20230227-f33ccdf2.pth",
    "segnext-b": "./pretrained/mscan_b_20230227-3ab7d230.pth",
    "mask2former-swin-t": "microsoft/swin-tiny-patch4-window7-224",
}
# Evaluated and saved every so many iterations; the other official configurations have 16000.
INTERVALS = {
    "mask2former-swin-t-offset-ade": 5000,
    "offseg-b-cocostuff": 8000,
    **{f"segformer-b{size}-offset-cocostuff": 8000 for size in range(6)},
    **{f"segnext-{size}-offset-context59": 8000 for size in "tsb"},
}
SHORTEST_EDGES = (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024)

VALID = """
model: {preset: offseg-t-ade}
data: {source: ade}
augmentation: {scale: [64, 32], ratio_range: [0.5, 2], crop_size: [32, 32]}
optimizer: {learning_rate: 1e-3, weight_decay: 0}
schedule: {iterations: 10}
training: {batch_size: 2, evaluation_interval: 5, checkpoint_interval: 5}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function (name, text) that writes a file into a folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_every_preset_has_a_recipe():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted([*PRESETS, "finetune"])


@every_recipe
def test_official_figures(name):
    preset, recipe = PRESETS[name], load_recipe(name)
    root, scale, crop, batch_size, iterations = DATA[preset.label_set]
    universal = preset.family == "mask2former"

    assert recipe.name == recipe.model.preset == name
    assert recipe.model.pretrained == PRETRAINED[f"{preset.family}-{preset.size}"]
    assert recipe.data.source == root
    augmentation = recipe.augmentation
    assert (augmentation.scale, augmentation.shortest_edges) == (
        (None, SHORTEST_EDGES) if universal else (scale, None)
    )
    assert (augmentation.ratio_range, augmentation.longest_edge) == ((0.5, 2.0), 2048)
    assert augmentation.crop_size == (crop, crop)
    assert (augmentation.cat_max_ratio, augmentation.flip, augmentation.photometric) == (0.75, 0.5, True)
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == ((1e-4, 0.05) if universal else (6e-5, 0.01))
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
    assert (optimizer.encoder_multiplier, optimizer.head_multiplier) == ((0.1, 1) if universal else (1, 10))
    assert optimizer.max_gradient_norm == (0.01 if universal else None)
    schedule = recipe.schedule
    assert schedule.iterations == iterations and schedule.warmup_start_factor == 1e-6
    assert (schedule.warmup_iterations, schedule.power) == ((0, 0.9) if universal else (1500, 1))
    training = recipe.training
    assert (training.batch_size, training.device_batch_size) == (batch_size, None)
    assert training.evaluation_interval == training.checkpoint_interval == INTERVALS.get(name, 16_000)
    assert (training.mixed_precision, training.ema_decay, training.report_to) == (None, None, "none")
    assert not recipe.model.config.get("learn_batch_norm_statistics", False)


@every_recipe
def test_what_is_saved_is_the_recipe(name, write):
    recipe = load_recipe(name, ["training.mixed_precision=no"])
    assert load_recipe(write("saved.yaml", recipe.dump())) == recipe
    assert yaml.safe_load(recipe.dump())["training"]["mixed_precision"] == "no"
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()


def test_files_repeat_nothing_that_they_inherit():
    for path in CONFIGS.rglob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        parents = values.pop("inherit", [])
        own = flat(values)
        for parent in [parents] if isinstance(parents, str) else parents:
            inherited = flat(yaml.safe_load((path.parent / parent).read_text()))
            assert not [key for key in own if key in inherited and own[key] == inherited[key]], path


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_every_key_is_documented():
    keys = {setting.key: setting for setting in described(Recipe)}
    assert keys["training.seed"].kind == "a whole number" and keys["training.seed"].default == 0
    assert keys["training.mixed_precision"].kind == "one of no, fp16, bf16 or null"
    assert keys["optimizer.learning_rate"].is_required and not keys["training.ema_decay"].is_required
    of_losses = {key for key in keys if key.startswith("loss[].")}
    assert of_losses == {f"loss[].{item.name}" for item in fields(LossRecipe)}
    assert keys.keys() - {"name", "loss"} - of_losses == {
        key for key in flat(asdict(load_recipe("offseg-t-ade"))) if "." in key
    } - {"model.config.learn_batch_norm_statistics"} | {
        "model.config",
        "model.image_processor",
        "optimizer.options",
        "schedule.options",
    }
    for setting in keys.values():
        assert setting.documentation.endswith("."), setting


def test_recipes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        load_recipe("offseg-t-ade").training.seed = 1


def test_overrides():
    recipe = load_recipe(
        "offseg-t-ade",
        [
            "optimizer.learning_rate=6e-4",
            "optimizer.betas=[0.9, 0.99]",
            "model.pretrained=null",
            "model.config.learn_batch_norm_statistics=true",
            "model.config.drop_path_rate=0.1",
            "data={source: elsewhere, num_workers: 0}",
            "training.mixed_precision=no",
            "training.seed=1",
            "training.seed=2",
            "name=no",
            "schedule.iterations=20_000",
        ],
    )
    assert recipe.optimizer.learning_rate == 6e-4 and recipe.optimizer.betas == (0.9, 0.99)
    assert recipe.model.pretrained is None
    assert recipe.model.config == {"learn_batch_norm_statistics": True, "drop_path_rate": 0.1}
    assert (recipe.data.source, recipe.data.num_workers, recipe.data.train_split) == ("elsewhere", 0, "train")
    assert (recipe.training.mixed_precision, recipe.training.seed, recipe.name) == ("no", 2, "no")
    assert recipe.schedule.iterations == 20_000


def test_without_overrides_nothing_changes():
    changed = load_recipe("offseg-t-ade", ["training.seed=1"])
    assert load_recipe("offseg-t-ade", ["training.seed=0"]) == load_recipe("offseg-t-ade") != changed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.sed=3", r"training.sed=3: unknown key training.sed \(did you mean training.seed\?\)"),
        ("optimizer.lr=1e-4", r"unknown key optimizer.lr \(did you mean optimizer.learning_rate\?\)"),
        ("optimizer.xyz=1", r"unknown key optimizer.xyz: expected some of kind, "),
        ("trainin.seed=1", r"unknown key trainin \(did you mean training\?\)"),
        ("inherit=x.yaml", "unknown key inherit"),
        ("training.seed", "expected key=value, such as training.seed=1, got 'training.seed'"),
        ("=1", "expected key=value"),
        ("training.seed=1.5", "training.seed: expected a whole number, got 1.5"),
        ("training.seed=true", "training.seed: expected a whole number, got True"),
        ("training.seed=", "training.seed: expected a whole number, got None"),
        ("training.seed=[1", "expected YAML, got "),
        ("training.seed.x=1", "training.seed: expected a whole number, got {'x': 1}"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate: expected a number, got 'fast'"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate: expected a number, got '.nan'"),
        ("optimizer.learning_rate=0", "yaml: optimizer: expected a learning_rate above 0, got 0.0"),
        ("optimizer.weight_decay=-1", "optimizer: expected a weight_decay of 0 or more"),
        ("optimizer.betas=[1]", "optimizer.betas: expected a list of 2, each a number, got "),
        ("optimizer.betas=[0.9, 1]", "optimizer: expected betas in"),
        ("optimizer.betas=[0.9, x]", r"optimizer.betas\[1\]: expected a number, got 'x'"),
        ("optimizer.head_multiplier=-1", "optimizer: expected multipliers of 0 or more"),
        ("optimizer={head_multiplier: 0, encoder_multiplier: 0}", "optimizer: expected an encoder_multiplier or a"),
        ("optimizer.max_gradient_norm=0", "optimizer: expected a max_gradient_norm above 0, or null"),
        ("augmentation.photometric=no", "augmentation.photometric: expected true or false, got 'no'"),
        ("augmentation.scale=512", "augmentation.scale: expected a list, each a whole number or null, got 512"),
        ("augmentation.scale=[512]", "augmentation: expected 2 numbers as scale"),
        (
            "augmentation={shortest_edges: [512], scale: [512, 512]}",
            "augmentation: expected scale or shortest_edges, got both",
        ),
        ("augmentation.ratio_range=[2, 0.5]", "augmentation: expected a ratio_range"),
        ("augmentation.crop_size=[0, 512]", "augmentation: expected whole pixels, above 0"),
        ("data=ade", "data: expected keys and values, got 'ade'"),
        ("data.num_workers=-1", "data: expected num_workers of 0 or more"),
        ("model.preset=offsg-t-ade", "model: .*did you mean offseg-t-ade, "),
        ("model.preset=null", "model: expected preset, checkpoint or backbone, got none"),
        ("model.config.semantic_loss_class_weights=[0, 0]", "model: expected config.semantic_loss_class_weights of"),
        ("model.config=[1]", "model.config: expected keys and values"),
        ("schedule.iterations=1500", r"schedule: .* from 0 to below iterations \(1500\), got 1500"),
        ("schedule.warmup_iterations=-1", "schedule: expected warmup_iterations from 0 to below"),
        ("schedule.warmup_start_factor=2", "schedule: expected a warmup_start_factor from 0 to 1"),
        ("optimizer.eps=0", "optimizer: expected an eps above 0"),
        ("schedule.power=0", "schedule: expected a power above 0"),
        ("training.batch_size=0", "training: expected batch_size above 0"),
        ("training.device_batch_size=0", "training: expected device_batch_size above 0"),
        ("training.ema_decay=1", "training: expected an ema_decay in"),
        (
            "training.mixed_precision=fp8",
            "training.mixed_precision: expected one of no, fp16, bf16 or null, got 'fp8'",
        ),
        ("training.seed=-1", "training: expected a seed of 0 or more"),
    ],
)
def test_wrong_overrides_are_refused(override, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe("offseg-t-ade", [override])
    assert "\n" not in str(error.value)


def test_inheritance(write):
    write("shared/base.yaml", VALID)
    write("shared/one.yaml", "inherit: base.yaml\ntraining: {seed: 1, log_interval: 1}\nmodel: {config: {a: 1, b: 1}}")
    write("shared/two.yaml", "training: {seed: 2}\nmodel: {config: {b: 2, c: 2}}")
    recipe = load_recipe(
        write("mine.yaml", "inherit: [shared/one.yaml, shared/two.yaml]\nmodel: {config: {c: 3}}\ndata: {labels: x}")
    )
    assert recipe.name == "mine" and recipe.schedule.iterations == 10
    assert (recipe.training.seed, recipe.training.log_interval) == (2, 1)
    assert recipe.model.config == {"a": 1, "b": 2, "c": 3}
    assert (recipe.data.source, recipe.data.labels) == ("ade", "x")
    own = write("own.yaml", f"inherit: {CONFIGS / 'offseg-t-ade.yaml'}\ntraining: {{batch_size: 4}}")
    assert load_recipe(own).training.batch_size == 4
    assert load_recipe(own).optimizer == load_recipe("offseg-t-ade").optimizer


def test_inheriting_twice_is_no_circle(write):
    write("base.yaml", VALID)
    write("left.yaml", "inherit: base.yaml")
    write("right.yaml", "inherit: base.yaml")
    assert load_recipe(write("mine.yaml", "inherit: [left.yaml, right.yaml]")).training.batch_size == 2


def test_circles_are_refused(write):
    write("a.yaml", "inherit: sub/b.yaml")
    write("sub/b.yaml", "inherit: ../a.yaml")
    with pytest.raises(ValueError, match=r"^a.yaml: expected inheritance that ends, got a.yaml -> sub/b.yaml -> "):
        load_recipe("a.yaml")
    write("a.yaml", "inherit: a.yaml")
    with pytest.raises(ValueError, match="a.yaml -> a.yaml"):
        load_recipe("a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + "inherit: missing.yaml", "mine.yaml: expected a recipe's file to inherit, got no missing.yaml"),
        (VALID + "inherit: 3", r"mine.yaml: inherit: expected a list, each text, got 3"),
        (VALID + "inherit: [3]", r"mine.yaml: inherit\[0\]: expected text, got 3"),
        (VALID + "inherit: base.yaml", r"base.yaml: unknown key optimiser \(did you mean optimizer\?\)"),
        (VALID + "seed: 1", "mine.yaml: unknown key seed"),
        (VALID + "name: a\nname: b", "mine.yaml: expected YAML, got the key name twice"),
        (VALID + "name: !!python/name:os.system", "mine.yaml: expected YAML, got could not determine"),
        (VALID.replace("{iterations: 10}", ""), "mine.yaml: schedule: expected keys and values, got None"),
        (
            VALID.replace("iterations: 10", "power: 1"),
            "mine.yaml: schedule: expected iterations or epochs, got neither",
        ),
        (
            VALID.replace("schedule: {iterations: 10}", ""),
            "mine.yaml: schedule: expected iterations or epochs, got neither",
        ),
        (VALID.replace("source: ade", "labels: x"), "mine.yaml: expected data.source, got none"),
        ("{", "mine.yaml: expected YAML, got "),
        ("", "mine.yaml: expected keys and values, got None"),
        ("- 1", r"mine.yaml: expected keys and values, got \[1\]"),
    ],
)
def test_wrong_files_are_refused(write, text, message):
    write("base.yaml", "optimiser: {}")
    write("mine.yaml", text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_recipe("mine.yaml")
    assert "\n" not in str(error.value)


def test_text_that_is_no_text_is_refused(write):
    write("mine.yaml", "").write_bytes(b"name: \xff")
    with pytest.raises(ValueError, match="mine.yaml: .*utf-8"):
        load_recipe("mine.yaml")


def test_unknown_recipes_are_refused(write):
    with pytest.raises(ValueError, match=r"unknown recipe 'offseg_t_ade' \(did you mean offseg-t-ade, .*\?\)"):
        load_recipe("offseg_t_ade")
    with pytest.raises(FileNotFoundError, match=r"configs.offseg-t-ade.yaml: .*did you mean offseg-t-ade\?"):
        load_recipe(Path("configs") / "offseg-t-ade.yaml")


def test_a_recipe_by_path_and_by_name_is_the_same():
    assert load_recipe(CONFIGS / "offseg-t-ade.yaml") == load_recipe("offseg-t-ade")


def test_model_config():
    recipe = load_recipe("offseg-t-ade", ["model.config.learn_batch_norm_statistics=true"])
    config = recipe.model_config(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    assert config.num_labels == 2 and config.learn_batch_norm_statistics
    assert load_recipe("offseg-t-ade").model_config().to_dict() == PRESETS["offseg-t-ade"].config().to_dict()
    with pytest.raises(ValueError, match=r"unknown key model.config.drop_path \(did you mean .*drop_path_rate\?\)"):
        load_recipe("offseg-t-ade", ["model.config.drop_path=0.1"]).model_config()


def test_image_processor():
    assert load_recipe("offseg-t-ade").image_processor().window_size == 512
    assert (
        load_recipe("offseg-t-ade", ["model.image_processor.window_size=null"]).image_processor().window_size is None
    )
    with pytest.raises(ValueError, match=r"unknown key .*windw_size \(did you mean .*window_size\?\)"):
        load_recipe("offseg-t-ade", ["model.image_processor.windw_size=1"]).image_processor()


def test_a_checkpoint_takes_the_place_of_the_preset():
    recipe = load_recipe("offseg-t-ade", ["model.preset=null", "model.checkpoint=nvidia/segformer-b0"])
    for build in (recipe.model_config, recipe.image_processor):
        with pytest.raises(ValueError, match="expected model.preset, got none: model.checkpoint and model.backb"):
            build()


def test_a_checkpoint_leaves_out_what_is_inherited_for_another_model(write):
    """On any official recipe; and on one of one's own, what that inherits."""
    recipe = load_recipe("offseg-t-ade", ["model.checkpoint=runs/first/best"])
    assert recipe.model == ModelRecipe(checkpoint="runs/first/best")
    expected = ("model.preset", "model.pretrained", "model.config.learn_batch_norm_statistics")
    assert set(recipe.left_out) == set(expected)
    write("base.yaml", VALID.replace("{preset", "{pretrained: x, config: {depths: [1]}, preset"))
    own = write("own.yaml", "inherit: base.yaml\nmodel: {checkpoint: y, config: {drop_path_rate: 0.1}}")
    assert load_recipe(own).model == ModelRecipe(checkpoint="y", config={"drop_path_rate": 0.1})
    back = write("back.yaml", "inherit: own.yaml\nmodel: {preset: offseg-t-ade}")
    assert load_recipe(back).model == ModelRecipe(preset="offseg-t-ade", config={"drop_path_rate": 0.1})
    assert load_recipe(write("saved.yaml", recipe.dump())) == recipe


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.preset=offseg-b-ade"], "model.preset=null"),
        (["model.pretrained=nvidia/mit-b0"], "model.pretrained=null"),
        (["model={preset: offseg-b-ade, pretrained: x}"], "model.preset=null model.pretrained=null"),
    ],
)
def test_what_a_user_wrote_beside_a_checkpoint_is_refused_with_the_words_to_remove(settings, words):
    settings = ["model.checkpoint=runs/first/best", *settings]
    with pytest.raises(ValueError, match=rf"would have no effect: remove the latter \({words}\)"):
        load_recipe("offseg-t-ade", settings)
    assert load_recipe("offseg-t-ade", [*settings, *words.split()]).model == ModelRecipe(checkpoint="runs/first/best")


def test_in_ones_own_file_too(write):
    own = write("own.yaml", VALID)
    with pytest.raises(ValueError, match=r"^own.yaml: model: model.checkpoint=x has .* \(model.preset=null\)"):
        load_recipe(own.name, ["model.checkpoint=x"])
    assert load_recipe(own, ["model.checkpoint=x", "model.preset=null"]).model == ModelRecipe(checkpoint="x")


NO_OFFSETS = "use_class_offset: false, use_feature_offset: false"


@pytest.mark.parametrize(
    ("beside", "setting", "key"),
    [
        ("schedule.warmup_iterations=0", "schedule.warmup_start_factor=0.1", "schedule.warmup_start_factor=0.1"),
        ("schedule.warmup_iterations=1", "schedule.warmup_start_factor=0.1", "schedule.warmup_start_factor=0.1"),
        ("augmentation.scale=null", "augmentation.ratio_range=[1, 2]", r"augmentation.ratio_range=\[1.0, 2.0\]"),
        ("augmentation.shortest_edges=[64]", "augmentation.ratio_range=[1, 2]", "augmentation.ratio_range="),
        ("augmentation.scale=[64, 32]", "augmentation.longest_edge=99", "augmentation.longest_edge=99"),
        ("training.seed=1", "training.hub_private=true", "training.hub_private=true"),
        (f"model.config={{{NO_OFFSETS}}}", "optimizer.offset_multiplier=0.1", "optimizer.offset_multiplier=0.1"),
        (f"model.config={{{NO_OFFSETS}}}", "model.config.start_without_offsets=true", "model.config.start_without"),
        (
            "model.config.use_class_offset=false",
            "model.config.class_offset_drop_path_rate=0.5",
            "model.config.class_offset_drop_path_rate=0.5",
        ),
    ],
)
def test_a_setting_without_effect_is_refused_if_written_and_left_out_if_inherited(write, beside, setting, key):
    with pytest.raises(ValueError, match=f"{key}.* has no effect, as .*: remove it"):
        load_recipe("offseg-t-ade", [setting, beside])
    name, _, value = setting.partition("=")
    section, _, rest = name.partition(".")
    text = f"inherit: {CONFIGS / 'offseg-t-ade.yaml'}\n{section}: "
    inner, _, last = rest.partition(".")
    write("base.yaml", text + (f"{{{inner}: {{{last}: {value}}}}}" if last else f"{{{inner}: {value}}}"))
    recipe = load_recipe(write("own.yaml", "inherit: base.yaml"), [beside])
    assert recipe == load_recipe("offseg-t-ade", ["name=own", beside])
    assert name in recipe.left_out
    assert load_recipe(write("saved.yaml", recipe.dump())) == recipe


def test_classes_come_with_the_data():
    with pytest.raises(ValueError, match="config.num_labels comes with the data"):
        load_recipe("offseg-t-ade", ["model.config.num_labels=3"])


def test_home_is_expanded_in_every_path(write, monkeypatch):
    home = write("home/own.yaml", VALID.replace("source: ade", "source: ~/data, labels: ~/classes.json")).parent
    monkeypatch.setenv("HOME", str(home))
    write("home/mine.yaml", "inherit: ~/own.yaml")
    recipe = load_recipe("~/mine.yaml", ["model.pretrained=~/weights.pth"])
    assert (recipe.data.source, recipe.data.labels) == (f"{home}/data", f"{home}/classes.json")
    assert recipe.model.pretrained == f"{home}/weights.pth"
    assert load_recipe("offseg-t-ade", ["model.checkpoint=~/best"]).model.checkpoint == f"{home}/best"


def test_dump_reads_back_whatever_text_says(write):
    texts = ["no", "1e-3", "6e-5", "true", "null", "~", "", "1_000", "010", "2024-01-01", "1:30", "a: b", "#", "Ä"]
    recipe = load_recipe("offseg-t-ade")
    config = {text: text for text in texts} | {"nested": [[1], [], {"no": "no"}]}
    saved = replace(recipe, name="1", model=replace(recipe.model, config=config))
    assert load_recipe(write("saved.yaml", saved.dump())) == saved


def test_types_of_the_image_processors_settings():
    recipe = load_recipe("offseg-t-ade", ["model.image_processor.window_size=big"])
    with pytest.raises(ValueError, match=r"model.image_processor.window_size: expected a whole number .*, got 'big'"):
        recipe.image_processor()
    assert load_recipe("offseg-t-ade", ["model.image_processor.image_mean=[0, 0, 0]"]).image_processor()


def test_checkpoints_from_before_a_setting_go_on():
    """With its default; with another value they are of another recipe."""
    recipe = load_recipe("offseg-t-ade")
    saved = recipe.to_dict()
    del saved["loss"], saved["schedule"]["kind"], saved["schedule"]["epochs"], saved["training"]["patience"]
    del saved["model"]["freeze"], saved["optimizer"]["kind"], saved["optimizer"]["options"]
    require_same_recipe(recipe, saved, Path("last"))
    for setting in ("schedule.kind=cosine", "model.freeze=encoder", "loss=[{kind: dice}]", "optimizer.kind=Adam"):
        with pytest.raises(ValueError, match=f"with .*{setting.partition('=')[0]}="):
            require_same_recipe(load_recipe("offseg-t-ade", [setting]), saved, Path("last"))
    require_same_recipe(load_recipe("offseg-t-ade", ["training.patience=3"]), saved, Path("last"))


def test_a_written_encoder_multiplier_has_no_effect_on_a_frozen_encoder():
    with pytest.raises(ValueError, match="optimizer.encoder_multiplier=2.0 has no effect, as model.freeze=encoder"):
        load_recipe("offseg-t-ade", ["model.freeze=encoder", "optimizer.encoder_multiplier=2"])
    inherited = load_recipe("mask2former-swin-t-offset-ade", ["model.freeze=encoder"])
    assert inherited.optimizer.encoder_multiplier == 1 and "optimizer.encoder_multiplier" in inherited.left_out


def test_the_recipe_of_finetuning_is_no_preset():
    """And whoever takes it has not written what is in it."""
    assert "finetune" not in PRESETS
    recipe = load_recipe("finetune", ["model.checkpoint=x", "data.source=y", "schedule.iterations=9"])
    assert recipe.written == {"model.checkpoint", "data.source", "schedule.iterations"}
    assert (recipe.schedule.iterations, recipe.schedule.epochs, recipe.training.patience) == (9, None, 10)
    with pytest.raises(ValueError, match="expected preset, checkpoint or backbone, got none"):
        load_recipe("finetune", ["data.source=y"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that ties processes to cores")
def test_reads_with_no_more_processes_than_cores():
    cores = os.sched_getaffinity(0)
    data = DataRecipe(source="data", num_workers=1000)
    try:
        assert data.workers == len(cores)
        os.sched_setaffinity(0, {min(cores)})
        assert data.workers == 1
        assert replace(data, num_workers=0).workers == 0
    finally:
        os.sched_setaffinity(0, cores)
