"""Start training from published weights: an encoder's from ImageNet, or all that another model has in common."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
from offseg_hf.conversion.keys import Fit, PretrainedForm, fit
from offseg_hf.conversion.tables import PRETRAINED_FORMS
from offseg_hf.hub_errors import explain, is_temporary


WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class PretrainedReport:
    """What was loaded: `used` keys were taken, those in `dropped` not; parameters in `initial` kept their values."""

    used: int
    dropped: list[str]
    initial: list[str]


def load_pretrained(model: PreTrainedModel, source: str | Path, revision: str | None = None) -> PretrainedReport:
    """Load published weights into `model`, in place: those of its encoder, and of what else the source has of it.

    source: a checkpoint file, a folder with `model.safetensors` or `pytorch_model.bin`, or a repository on the Hub.
    revision: branch, tag or commit on the Hub.

    Which forms are known for which model: `offseg_hf.conversion.tables`. What the source lacks keeps its values, and
    the report names it. Raises ValueError if the weights are of another kind or size, and OSError if there is no
    `source`.
    """
    weights = read_checkpoint(_locate(source, revision))
    form = _form(weights, model.config.model_type, source)
    fitted, initial = _fit(weights, form, model)
    if not fitted.is_complete:
        raise CheckpointError(
            f"{source}: expected {form.name} of the size of this {type(model).__name__}, got {fitted.problems()}"
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
    problem = None
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


def _explain(problem: Exception, source: str | Path, revision: str | None) -> str:
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
            return explain(problem)


def _form(weights: Mapping[str, Tensor], model_type: str, source: str | Path) -> PretrainedForm:
    forms = PRETRAINED_FORMS.get(model_type, ())
    for form in forms:
        if form.marker in weights:
            return form
    known = ", or ".join(form.name for form in forms)
    keys = ", ".join(list(weights)[:3])
    raise CheckpointError(f"{source}: expected the weights of {known}, got {keys}, ...")


def _fit(weights: Mapping[str, Tensor], form: PretrainedForm, model: PreTrainedModel) -> tuple[Fit, list[str]]:
    """The weights under the names of `model`, and the names of its parameters that keep their values."""
    fitted = fit(weights, form.table, model.state_dict())
    initial = [name for name in (*fitted.misshaped, *fitted.missing) if re.fullmatch(form.kept, name)]
    kept = set(initial)
    fitted.missing = [name for name in fitted.missing if name not in kept]
    for name in initial:
        if fitted.misshaped.pop(name, None):
            del fitted.weights[name]
            if fitted.origins[name] not in fitted.dropped:  # of a tensor that is several of ours, all parts go
                fitted.dropped.append(fitted.origins[name])
    return fitted, initial
