"""Model cards of the official models, made from `model_cards/template.md` and the table of results; never by hand.

Beside the README with its front matter, what the Hub reads are the files of `.eval_results/`: one result each, of a
data set on the Hub (https://huggingface.co/docs/hub/eval-results). It shows those of data sets that are registered as
benchmarks there, which is up to their owners.
"""

from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers import PreTrainedConfig

from offseg_hf.hub.repository import CARD
from offseg_hf.zoo.families import FAMILIES, Family
from offseg_hf.zoo.presets import Preset
from offseg_hf.zoo.registration import auto_model_class
from offseg_hf.zoo.results import DataSet, Paper, Result, load_results, model_cards_folder


OFFICIAL_URL = "https://github.com/HVision-NKU/OffSeg"
LICENSE_LINK = f"{OFFICIAL_URL}/blob/main/LICENSE"
LICENSE_NAME = "offseg-apache-2.0-non-commercial"
TASK = "image-segmentation"


def official_card_files(preset: Preset, repository: str) -> dict[str, str]:
    """Return, by path in the repository, the texts that say on the Hub what an official model is."""
    table = load_results()
    family = FAMILIES[preset.family]
    result, data_set = table.of(preset)
    config = preset.config()
    values = {
        "official": True,
        "title": family.title.format(size=preset.size.title()) + f", {preset.labels.title}",
        "summary": _summary(family, preset, table.paper),
        "preset": preset.name,
        "result": result,
        "family": family,
        "data_set": data_set,
        "data_title": preset.labels.title,
        "base_model": preset.base_model,
        "num_parameters": preset.num_parameters,
        "image_size": "x".join(map(str, data_set.image_size)),
        "protocol": _protocol(preset),
        "classes": preset.labels.names,
    }
    data = ModelCardData(
        base_model=preset.base_model,
        base_model_relation="finetune" if preset.base_model else None,
        datasets=[data_set.hub_id] if data_set.hub_id else None,
        license="other",
        license_name=LICENSE_NAME,
        license_link=LICENSE_LINK,
        metrics=["mean_iou"],
        model_name=preset.name,
        eval_results=[_eval_result(preset, result, data_set, family, table.paper)],
        **front_matter(config, preset.family),
    )
    card = render_card(data, config=config, repository=repository, has_code=True, **values)
    return {CARD: card} | _eval_result_files(preset, result, data_set, table.paper)


def front_matter(config: PreTrainedConfig, kind: str) -> dict[str, Any]:
    """Return what the front matter of all cards has; `kind` of model is a tag too."""
    method = ["offset-learning"] if has_offset_learning(config) else []
    tags = ["offseg_hf", *method, "semantic-segmentation", "vision", kind]
    return {"library_name": "transformers", "pipeline_tag": TASK, "tags": tags}


def has_offset_learning(config: PreTrainedConfig) -> bool:
    """Return whether the model is one of this package, and not one of transformers that was trained with it."""
    return type(config).__module__.startswith("offseg_hf.")


def render_card(
    data: ModelCardData, *, config: PreTrainedConfig, repository: str, has_code: bool, **values: Any
) -> str:
    """Return the text of a card: `data` as front matter, and the template with `values`, which it names.

    Args:
        data: The front matter.
        config: The model's configuration.
        repository: The repository's name, as user/name.
        has_code: Whether the repository holds the model's code.
        values: What the template names besides.
    """
    auto_class = auto_model_class(config).__name__
    card = ModelCard.from_template(
        data,
        template_path=str(model_cards_folder() / "template.md"),
        repository=repository,
        auto_class=auto_class,
        is_universal="Universal" in auto_class,
        has_method=has_offset_learning(config),
        paper=load_results().paper,
        has_code=has_code,
        official_url=OFFICIAL_URL,
        license_link=LICENSE_LINK,
        **values,
    )
    return str(card).rstrip("\n") + "\n"


def _summary(family: Family, preset: Preset, paper: Paper) -> str:
    return (
        f"A model for semantic segmentation, trained by the authors on {preset.labels.title}: {family.architecture}. "
        f"From *[{paper.title}]({paper.url})* ({paper.venue}). Converted from the checkpoint that the authors publish "
        f"in [their repository]({OFFICIAL_URL})."
    )


def _protocol(preset: Preset) -> str:
    """Return the test protocol in a sentence."""
    long_side, short_side = preset.scale
    parts = [
        f"a photo is resized, keeping its ratio, to the largest size whose long side has no more than {long_side} and "
        f"whose short side no more than {short_side} pixels"
    ]
    if preset.size_divisor:
        parts.append(f"padded to multiples of {preset.size_divisor}")
    if preset.window:
        parts.append(
            f"and looked at through windows of {preset.window}x{preset.window}, {preset.stride} pixels apart, "
            "whose scores are averaged where they overlap"
        )
    else:
        parts.append("and looked at whole")
    return f"{', '.join(parts)}. The label map has the photo's size."


def _eval_result(preset: Preset, result: Result, data_set: DataSet, family: Family, paper: Paper) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        task_name="Semantic segmentation",
        dataset_type=data_set.hub_id or preset.labels.name,
        dataset_name=preset.labels.title,
        dataset_config=data_set.config,
        dataset_split="validation",
        metric_type="mean_iou",
        metric_name="mIoU, %, one scale, as the paper reports it",
        metric_value=result.miou,
        verified=False,
        source_name=f"{paper.venue} paper, Table {family.table}",
        source_url=paper.url,
    )


def _eval_result_files(preset: Preset, result: Result, data_set: DataSet, paper: Paper) -> dict[str, str]:
    if data_set.hub_id is None or data_set.config is None:  # an entry must name both, of the Hub
        return {}
    entry = EvalResultEntry(
        dataset_id=data_set.hub_id,
        task_id=data_set.config,
        value=result.miou,
        source_url=paper.url,
        source_name=f"{paper.venue} paper",
        notes="mIoU in %, one scale, as the paper reports it",
    )
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return {f".eval_results/{preset.label_set}.yaml": text}
