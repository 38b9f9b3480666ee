"""A split where annotations have none: photos that show the same must not fall on both sides."""

import hashlib
import re
from collections.abc import Sequence


SHARE = 0.2  # of the photos is to validate on
RULE = "a group is a folder and a name without the number at its end"


def without_upload_prefix(name: str) -> str:
    """Return a file's name before Label Studio (a1b2c3d4-name.jpg) or Roboflow (name_jpg.rf.0a1b...) took it."""
    name = re.sub(r"^[0-9a-f]{8}-(?=.)", "", name)
    return re.sub(r"_(?:jpe?g|png|bmp|webp)\.rf\.[0-9a-zA-Z]+", "", name)


def group_of(name: str) -> str:
    """Return the group of a photo: its folder and its name without the number that frames of a video end in."""
    folder, _, base = name.rpartition("/")
    stem = re.sub(r"[-_. ()]*\d+[-_. ()]*$", "", without_upload_prefix(base))
    return f"{folder}/{stem}" if folder else stem


def split_by_groups(names: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the split of each photo, train or validation, and how it was found in words.

    Args:
        names: of the photos, with their folders, without ending.

    Returns:
        The split by name, the same whenever and wherever, and a sentence for the user.
    """
    if len(names) < 2:
        return dict.fromkeys(names, "train"), "no split: one photo, to train on"
    chosen, told = hold_out(names)
    return {name: "validation" if name in chosen else "train" for name in names}, f"the source has no split; {told}"


def hold_out(names: Sequence[str], share: float = SHARE) -> tuple[set[str], str]:
    """Choose whole groups of photos to validate on; without groups to tell apart the last ones.

    Args:
        names: of two photos or more, with their folders, without ending.
        share: of the photos that is wanted, up to a half.

    Returns:
        The names chosen, the same whenever and wherever, and how they were found in words.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name), []).append(name)
    wanted = max(1, round(len(names) * share))
    taken: list[str] = []
    count = 0
    if len(groups) > 1:
        by_hash = sorted(groups, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
        for group in by_hash:
            if count + len(groups[group]) <= wanted:
                taken.append(group)
                count += len(groups[group])
        if not taken:
            smallest = min(by_hash, key=lambda group: len(groups[group]))
            if len(groups[smallest]) <= min(2 * share, 0.5) * len(names):
                taken, count = [smallest], len(groups[smallest])
    if taken:
        told = (
            f"whole groups: {len(taken)} of {len(groups)} with {count} of {len(names)} photos to validate on ({RULE})"
        )
        return {name for group in taken for name in groups[group]}, told
    kinds = "one group" if len(groups) == 1 else f"{len(groups)} groups, too large"
    told = (
        f"no groups to tell apart ({kinds}; {RULE}): the last {wanted} of {len(names)} photos by name and number "
        "are to validate on; if they are frames of one video, scores are too good"
    )
    return {*sorted(names, key=_natural)[-wanted:]}, told


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts a2 before a10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
