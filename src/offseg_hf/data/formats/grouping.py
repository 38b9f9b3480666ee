"""A split where annotations have none: photos that show the same must not fall on both sides."""

import hashlib
import re
from collections.abc import Sequence


SHARE = 5  # one of so many photos is to validate on
LARGEST = 2 / SHARE  # share of the photos that a group to validate on may have


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
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name), []).append(name)
    wanted = max(1, round(len(names) / SHARE))
    rule = "a group is a folder and a name without the number at its end"
    if len(names) < 2:
        return dict.fromkeys(names, "train"), "no split: one photo, to train on"
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
            if len(groups[smallest]) <= LARGEST * len(names):
                taken, count = [smallest], len(groups[smallest])
    if taken:
        chosen = {name for group in taken for name in groups[group]}
        told = (
            f"whole groups: {len(taken)} of {len(groups)} with {count} of {len(names)} photos to validate on ({rule})"
        )
    else:
        ordered = sorted(names, key=_natural)
        chosen, kinds = {*ordered[-wanted:]}, "one group" if len(groups) == 1 else f"{len(groups)} groups, too large"
        told = (
            f"no groups to tell apart ({kinds}; {rule}): the last {wanted} of {len(names)} photos by name and number "
            "are to validate on; if they are frames of one video, scores are too good"
        )
    return {name: "validation" if name in chosen else "train" for name in names}, f"the source has no split; {told}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts a2 before a10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
