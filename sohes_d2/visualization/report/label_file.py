"""A COCO file to show: ours, of a peer, or plain COCO; or a list of COCO results beside one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


class ReportError(ValueError):
    """The page cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class LabelFile:
    """What a json file says of its images.

    Attributes:
        path: of the file, for messages.
        images: image id -> COCO image record, in the file's order. Empty for a list of results.
        annotations: image id -> its annotations, in their order.
        categories: category id -> name; empty where the file tells no classes apart.
        has_hierarchy: whether any annotation has ``parent_id``.
        strays: how many entries name no image of the file and are left out.
        folders: how many of its folders its name tells.
    """

    path: str
    images: Mapping[Any, dict[str, Any]]
    annotations: Mapping[Any, list[dict[str, Any]]]
    categories: Mapping[Any, str]
    has_hierarchy: bool
    strays: int = 0
    folders: int = 0

    @property
    def name(self) -> str:
        """The file's name, with as many of its folders as ``folders`` says."""
        parts = Path(self.path).parts
        return Path(*parts[-1 - self.folders :]).as_posix()

    @property
    def is_result_list(self) -> bool:
        """Whether the file is a bare list of predictions, whose image ids are those of another file."""
        return not self.images

    def of(self, image_id: Any) -> list[dict[str, Any]]:
        """Annotations of an image; empty where it has none."""
        return list(self.annotations.get(image_id, ()))


def read_label_file(path: str | Path, results_allowed: bool = False) -> LabelFile:
    """Read a COCO data set, or with ``results_allowed`` a COCO result list.

    Raises:
        ReportError: the file cannot be read, is no json, or is none of these.
    """
    path = str(path)
    content = read_json(path)
    if isinstance(content, list):
        if not results_allowed:
            raise ReportError(
                f"{path} is a list of results, which has no file names; give the data set it was predicted on as "
                "--json and the list as --compare"
            )
        return _label_file(path, {}, content, {})
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ReportError(f"{path} is no COCO file: it has no list 'images'")
    images: dict[Any, dict[str, Any]] = {}
    for record in content["images"]:
        image_id = record.get("id") if isinstance(record, dict) else None
        if not isinstance(image_id, (int, str)):
            raise ReportError(f"{path}: an image without a number or text as 'id': {str(record)[:80]}")
        if image_id in images:
            raise ReportError(f"{path}: two images have the id {image_id!r}; make ids unique")
        images[image_id] = record
    if not images:
        raise ReportError(f"{path} has no images, so there is nothing to show")
    return _label_file(path, images, content.get("annotations") or [], _categories(content.get("categories")))


def read_json(path: str | Path) -> Any:
    """The content of a json file.

    Raises:
        ReportError: the file is missing or is not json.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise ReportError(f"{path} is not json: {error}; was it cut off or compressed?") from error


def _label_file(path: str, images: dict[Any, Any], entries: Any, categories: dict[Any, str]) -> LabelFile:
    if not isinstance(entries, list):
        raise ReportError(f"{path}: 'annotations' is not a list")
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    strays = 0
    for entry in entries:
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if isinstance(image_id, (int, str)) and (not images or image_id in images):
            annotations[image_id].append(entry)
        else:
            strays += 1
    has_hierarchy = any("parent_id" in entry for mine in annotations.values() for entry in mine)
    return LabelFile(path, images, dict(annotations), categories, has_hierarchy, strays)


def _categories(records: Any) -> dict[Any, str]:
    if not isinstance(records, list):
        return {}
    names = {
        record["id"]: str(record.get("name", record["id"]))
        for record in records
        if isinstance(record, dict) and isinstance(record.get("id"), (int, str))
    }
    # A single class, such as our "entity", says nothing of a mask.
    return names if len(names) > 1 else {}


def named_apart(files: Sequence[LabelFile]) -> list[LabelFile]:
    """The same files, with names that differ where their paths do: "a/labels.json" and "b/labels.json"."""
    longest = max(len(Path(file.path).parts) for file in files)
    for folders in range(longest):
        named = [replace(file, folders=min(folders, len(Path(file.path).parts) - 1)) for file in files]
        if len({file.name for file in named}) == len(files):
            return named
    return list(files)
