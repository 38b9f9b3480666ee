"""Start training from published weights: an encoder's from ImageNet, or all that another model has in common."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor
from transformers import PreTrainedModel

from offseg_hf.conversion.checkpoint import CheckpointError, read_checkpoint
from offseg_hf.conversion.keys import OWN_TABLE, Fit, fit, has_own_names, other_num_classes, without_prefixes
from offseg_hf.conversion.tables import OFFICIAL_MARKERS, OFFICIAL_TABLES, PRETRAINED_FORMS
from offseg_hf.utils.hub_errors import explain, is_temporary


ATTENTION_BIASES = r"encoder\..*\.attention_bias\.table"  # of a grid that follows from `image_size`
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class PretrainedReport:
    """What was loaded: `used` keys were taken, those in `dropped` not; parameters in `initial` kept their values."""

    used: int
    dropped: list[str]
    initial: list[str]


def load_pretrained(model: PreTrainedModel, source: str | Path, revision: str | None = None) -> PretrainedReport:
    """Load published weights into `model`, in place: those of its encoder, and of what else the source has of it.

    Which forms are known for which model: `offseg_hf.conversion.tables`; beside them a checkpoint of the official
    code, and a model of this package, whose tensors are taken as they are. Of these two what has another number of
    classes keeps its values. What the source lacks keeps its values too, and the report names all of it.

    Args:
        model: Of this package.
        source: A checkpoint file, a folder with `model.safetensors` or `pytorch_model.bin`, or a repository.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ValueError: if the weights are of another kind or size.
        OSError: if there is no `source`.
    """
    weights = read_checkpoint(_locate(source, revision))
    name, fitted, initial = _fit(weights, model, source)
    if not fitted.is_complete:
        raise CheckpointError(
            f"{source}: expected {name} of the size of this {type(model).__name__}, got {fitted.problems()}"
        )
    model.load_state_dict(fitted.weights, strict=False)  # checked above; counters and what is kept may be missing
    return PretrainedReport(len(fitted.used), fitted.dropped, initial)


def _locate(source: str | Path, revision: str | None) -> Path:
    path = Path(source)
    for candidate in [path / name for name in WEIGHTS_NAMES] if path.is_dir() else [path]:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise FileNotFoundError(f"{source}: expected a folder with {' or '.join(WEIGHTS_NAMES)}, got one with neither")
    problem: Exception | None = None
    for name in WEIGHTS_NAMES:
        is_unreachable = isinstance(problem, LocalEntryNotFoundError)  # the client has tried for some 20 seconds
        try:
            return Path(hf_hub_download(str(source), name, revision=revision, local_files_only=is_unreachable))
        except EntryNotFoundError as error:  # on the Hub; or, where that is out of reach, in the client's cache
            problem = problem if is_unreachable else error
        except (HFValidationError, HfHubHTTPError) as error:
            problem = error
            break
        except Exception as error:  # of the network: which library brings it, the client keeps to itself
            if not is_temporary(error):
                raise
            problem = error
            break
    raise FileNotFoundError(f"{source}: {_explain(problem, source, revision)}") from None


def _explain(problem: Exception | None, source: str | Path, revision: str | None) -> str:
    """In one line, why the Hub's client found no weights, and what to do about it."""
    names = " or ".join(WEIGHTS_NAMES)
    expected = f"expected a checkpoint file, a folder with {names} or a repository on the Hub"
    log_in = "log in (`hf auth login`, or HF_TOKEN)"
    page = f"{constants.ENDPOINT}/{source}"
    match problem:
        case RemoteEntryNotFoundError():
            place = f"at revision {revision} " if revision else ""
            return (
                f"expected a repository with {names}, got one with neither {place}"
                "(weights of another name: download the file, and give its path)"
            )
        case LocalEntryNotFoundError():
            reason = " ".join(str(problem.__cause__ or problem).split())
            return f"{expected}, got no file or folder, and no answer from the Hub: connect to it ({reason})"
        case RevisionNotFoundError():
            return f"expected a branch, tag or commit of the repository, got revision {revision!r}: see {page}"
        case GatedRepoError():
            return f"expected access to a gated repository, got none: accept its terms at {page}, and {log_in}"
        case RepositoryNotFoundError():
            return f"{expected}, got none of them: check the name, and if the repository is private, {log_in}"
        case HFValidationError():
            return f"{expected}, got none of them"
        case HfHubHTTPError() if not is_temporary(problem):  # a refused token, above all
            reason = " ".join(str(problem.server_message or problem).split())
            return f"expected an answer from the Hub, got {problem.response.status_code} ({reason}): {log_in}"
        case _:
            return (problem and explain(problem)) or str(problem)


def _fit(weights: Mapping[str, Tensor], model: PreTrainedModel, source: str | Path) -> tuple[str, Fit, list[str]]:
    """Return what the weights are, the same under the names of `model`, and its parameters that keep their values."""
    model_type, ours = model.config.model_type, model.state_dict()
    for bare in without_prefixes(weights):
        if has_own_names(bare, ours) and not ours.keys().isdisjoint(bare):
            return "weights of offseg_hf", *_fit_own(bare, ours, model.config.num_labels)
        if OFFICIAL_MARKERS.get(model_type) in bare:
            fitted = fit(bare, OFFICIAL_TABLES[model_type], ours)
            initial = _of_other_classes(fitted, ours, model.config.num_labels)
            return "a checkpoint of the official code", fitted, _keep(fitted, initial)
        for form in PRETRAINED_FORMS.get(model_type, ()):
            if form.marker in bare:
                fitted = fit(bare, form.table, ours)
                names = (*fitted.misshaped, *fitted.missing)
                return form.name, fitted, _keep(fitted, [name for name in names if re.fullmatch(form.kept, name)])
    known = ", or ".join(form.name for form in PRETRAINED_FORMS.get(model_type, ()))
    keys = ", ".join(list(weights)[:3])
    got = "those of another model of offseg_hf, " if has_own_names(weights) else ""
    raise CheckpointError(f"{source}: expected the weights of {known or type(model).__name__}, got {got}{keys}, ...")


def _fit_own(weights: Mapping[str, Tensor], ours: Mapping[str, Tensor], num_labels: int) -> tuple[Fit, list[str]]:
    """Fit weights under our names, as they are; a whole part (encoder, decoder) that only one side has is left out."""
    fitted = fit(weights, OWN_TABLE, ours)
    theirs, own = ({name.partition(".")[0] for name in names} for names in (weights, ours))
    fitted.dropped += [name for name in fitted.left_over if name.partition(".")[0] not in own]
    fitted.left_over = [name for name in fitted.left_over if name.partition(".")[0] in own]
    missing = [name for name in fitted.missing if name.partition(".")[0] not in theirs]
    return fitted, _keep(fitted, [*_of_other_classes(fitted, ours, num_labels), *missing])


def _of_other_classes(fitted: Fit, ours: Mapping[str, Tensor], num_labels: int) -> list[str]:
    """Return the parameters whose shapes differ by the number of classes, or by the grid of an attention's biases."""
    tables = [name for name in fitted.misshaped if re.fullmatch(ATTENTION_BIASES, name)]
    rest = replace(fitted, misshaped={name: fitted.misshaped[name] for name in fitted.misshaped if name not in tables})
    if rest.misshaped and other_num_classes(rest, ours, num_labels) is None:
        return []
    return list(fitted.misshaped)


def _keep(fitted: Fit, initial: list[str]) -> list[str]:
    """Take the parameters that keep their values, `initial`, out of the fit; returns their names."""
    kept = set(initial)
    fitted.missing = [name for name in fitted.missing if name not in kept]
    for name in initial:
        if fitted.misshaped.pop(name, None):
            del fitted.weights[name]
            if fitted.origins[name] not in fitted.dropped:  # of a tensor that is several of ours, all parts go
                fitted.dropped.append(fitted.origins[name])
    return initial
