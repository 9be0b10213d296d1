"""Config keys and transforms that were renamed since earlier versions, and errors for their use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError

# Old key or section -> new name. The longest matching entry is used.
RENAMED = {
    "CORRECTION.DUPLICATE_IOU": "CORRECTION.INITIAL_IOU_THRESHOLD",
    "CORRECTION.OWN_DUPLICATE_IOU": "CORRECTION.NMS_THRESHOLD",
    "CORRECTION.TEACHER_VIEWS": "CORRECTION.TEACHER_TTA",
    "CORRECTION.TEACHER_VIEWS.DUPLICATE_IOU": "CORRECTION.TEACHER_TTA.NMS_THRESHOLD",
    "CORRECTION.TEACHER_VIEWS.NAMES": "CORRECTION.TEACHER_TTA.TRANSFORMS",
    "CORRECTION.THRESHOLD.AREA_LARGE": "CORRECTION.THRESHOLD.AREA_RATIO_LARGE",
    "CORRECTION.THRESHOLD.AREA_SMALL": "CORRECTION.THRESHOLD.AREA_RATIO_SMALL",
    "CORRECTION.VIEWS.ERASE_AREA": "CORRECTION.VIEWS.ERASE_AREA_RATIO",
    "EXPLORATION.FILTER.DUPLICATE_IOU": "EXPLORATION.FILTER.NMS_THRESHOLD",
    "EXPLORATION.FILTER.MAX_AREA": "EXPLORATION.FILTER.MAX_AREA_RATIO",
    "EXPLORATION.THETAS": "EXPLORATION.THETA_MERGE",
    "EXPLORATION.ZOOM": "EXPLORATION.LOCAL_RECLUSTERING",
    "EXPLORATION.ZOOM.SAME_CROP_IOU": "EXPLORATION.LOCAL_RECLUSTERING.NMS_THRESHOLD",
    "EXPLORATION.ZOOM.SMALL_AREA": "EXPLORATION.LOCAL_RECLUSTERING.SMALL_AREA_RATIO",
    "PRETRAINING.LOSSES.PLACE": "PRETRAINING.LOSSES.DENSE",
    "PRETRAINING.LOSSES.PLACE_POINTS": "PRETRAINING.LOSSES.DENSE_POINTS",
    "PRETRAINING.LOSSES.PLACE_SIGMA": "PRETRAINING.LOSSES.DENSE_SIGMA",
    "PRETRAINING.LOSSES.PLACE_TEMPERATURE": "PRETRAINING.LOSSES.DENSE_TEMPERATURE",
    "TEST.DUPLICATE_IOU": "TEST.NMS_THRESHOLD",
    "TEST.VIEWS": "TEST.TTA",
    "TEST.VIEWS.DUPLICATE_IOU": "TEST.TTA.NMS_THRESHOLD",
    "TEST.VIEWS.NAMES": "TEST.TTA.TRANSFORMS",
}

# Old name of a TTA transform -> new name.
TRANSFORMS = {
    "same": "identity",
    "mirrored": "hflip",
    "turned_90": "rot90",
    "turned_180": "rot180",
    "turned_270": "rot270",
    "mirrored_turned_90": "hflip_rot90",
    "mirrored_turned_180": "hflip_rot180",
    "mirrored_turned_270": "hflip_rot270",
}


def new_name(key: str) -> str:
    """The new name of a renamed key, "" if it was not renamed."""
    section, rest = key, ""
    while section not in RENAMED:
        section, _, last = section.rpartition(".")
        if not section:
            return ""
        rest = f".{last}{rest}"
    return RENAMED[section] + rest


def check_names(content: Mapping[str, Any], where: str) -> None:
    """Reject names of earlier versions, a wrong form of DATASETS.REGISTER, and Detectron2's TEST.AUG.

    Args:
        content: keys and values as nested dicts.
        where: origin of the keys, for messages.

    Raises:
        ConfigError: one of these; for names of earlier versions, the message lists all of them with their new names.
    """
    renamed = [f"{key} is now {new_name(key)}" for key in _keys(content) if new_name(key)]
    for section in ("TEST.TTA", "CORRECTION.TEACHER_TTA"):
        names = re.findall(r"\w+", str(value_of(content, f"{section}.TRANSFORMS")))
        renamed += [f"{section}.TRANSFORMS {name} is now {TRANSFORMS[name]}" for name in names if name in TRANSFORMS]
    if renamed:
        raise ConfigError(f"{where}: names have changed: {'; '.join(renamed)}")
    data_sets = value_of(content, "DATASETS.REGISTER")
    if isinstance(data_sets, str):
        raise ConfigError(
            f"{where}: the keys of DATASETS.REGISTER are names of data sets: DATASETS.REGISTER.mine "
            f'"labels.json, images/", in yaml `REGISTER: {{mine: [labels.json, images/]}}`; got {data_sets!r}'
        )
    if str(value_of(content, "TEST.AUG.ENABLED")).lower() not in ("none", "false"):
        raise ConfigError(f"{where}: TEST.AUG is for Detectron2's models with boxes; set TEST.TTA.TRANSFORMS")


def value_of(content: Any, key: str) -> Any:
    """The value of a dotted key, None if it is missing."""
    for name in key.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def _keys(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
