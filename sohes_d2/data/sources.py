"""Image lists from `--images`: a folder, an image, a list of paths, or a COCO file, with reproducible image ids."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..labels.reader import read_images
from ..labels.scanner import readable
from ..labels.schema import image_name
from ..structures.files import open_regular
from ..structures.images import IMAGE_SUFFIXES

# Annotation ids are image_id * ID_STRIDE + k with k from 1, so that they do not depend on workers, shards or resume.
ID_STRIDE = 10_000
MAX_MASKS_PER_IMAGE = ID_STRIDE - 1
LARGEST_IMAGE_ID = (2**63 - 1) // ID_STRIDE - 1  # annotation ids are 64-bit numbers


@dataclass(frozen=True)
class ImageItem:
    """One image of a list: its COCO id, its name in label files, and its path."""

    image_id: int
    file_name: str
    path: str


class ImageList(Sequence):
    """An ordered list of images with ids that depend only on the list.

    Attributes:
        root: base folder of the file names.
        kind: "folder", "image", "list" or "coco".
        file_names: posix paths relative to ``root`` (or absolute, if so in the list).
        image_ids: 1 + position, or the ids of the COCO file.
    """

    def __init__(self, root: str, kind: str, file_names: Sequence[str], image_ids: Sequence[int] | None = None):
        self.root = root
        self.kind = kind
        self.file_names = list(file_names)
        self.image_ids = range(1, len(self.file_names) + 1) if image_ids is None else list(image_ids)

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name = self.file_names[index]
        return ImageItem(self.image_ids[index], name, os.path.join(self.root, name))

    def describe(self) -> dict[str, Any]:
        """Json-ready description that identifies the list: kind, count, sha256 over ids and names (not pixels)."""
        digest = hashlib.sha256()
        for image_id, name in zip(self.image_ids, self.file_names):
            digest.update(b"%d\0%s\0" % (image_id, os.fsencode(name)))
        return {"kind": self.kind, "count": len(self), "sha256": digest.hexdigest()}


def read_image_list(images: str, image_root: str | None = None) -> ImageList:
    """List the images given by `--images`.

    - A folder: every file with an image suffix in it and its sub-folders (links are followed, hidden files and folders
      skipped), sorted by relative posix path; ids are 1 + position. Unusable files are reported when they are read. A
      sub-folder that cannot be listed is included as its name with a slash, so that it is reported as well.
    - An image: a list of one image.
    - A text file: one path per line, relative to the list's folder; ids are 1 + position. Empty lines are ignored.
    - A COCO json file (suffix ``.json``): its images in order, with their ids and file names, relative to
      ``image_root``.

    Args:
        images: the folder or file.
        image_root: base folder of the file names; default: the folder itself, or the folder of the file.

    Raises:
        InputError: the path does not exist, contains no image, or is neither a list nor a COCO json.
    """
    if os.path.isdir(images):
        if image_root is not None:
            raise InputError("--image-root is only for a list or a COCO json file, but --images is a folder")
        names = _walk(images)
        if not names:
            suffixes = " ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(f"no image in the folder {images!r} or its sub-folders (known suffixes: {suffixes})")
        return ImageList(images, "folder", names)
    if not os.path.exists(images):
        raise InputError(
            f"--images {images!r} does not exist; pass a folder, a text file of paths, or a COCO json file"
        )
    root = image_root if image_root is not None else os.path.dirname(images)
    if images.lower().endswith(".json"):
        return _read_coco(images, root)
    if os.path.splitext(images)[1].lower() in IMAGE_SUFFIXES:
        return ImageList(root, "image", [os.path.relpath(images, root or os.curdir).replace(os.sep, "/")])
    return _read_lines(images, root)


def _walk(folder: str) -> list[str]:
    names = []
    seen = set()  # visited real paths, to break cycles of links
    unreadable: list[OSError] = []
    for current, folders, files in os.walk(folder, followlinks=True, onerror=unreadable.append):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # sorted, so that the choice between two links to the same folder is deterministic
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(current, folder)
        names += [
            name if relative == os.curdir else os.path.join(relative, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    for error in unreadable:
        if error.filename == folder:
            raise InputError(f"the folder {folder!r} cannot be listed: {error.strerror}") from error
        names.append(os.path.relpath(error.filename, folder) + os.sep)
    return sorted(name.replace(os.sep, "/") for name in names)


def _read_lines(path: str, root: str) -> ImageList:
    with readable(path), open_regular(path, pipes=True) as file:  # --images <(find photos/)
        data = file.read()
    if b"\0" in data:
        raise InputError(f"{path!r} is not a text file; pass one path per line, or a COCO file with the suffix .json")
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise InputError(f"the list {path!r} is empty; write one image path per line, relative to the list's folder")
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"the list {path!r} has {name!r} twice; name each image once")
    return ImageList(root, "list", names)


def _read_coco(path: str, root: str) -> ImageList:
    images = read_images(path)
    if not images:
        raise InputError(f"`images` of {path!r} is empty")
    image_ids: list[Any] = [image["id"] for image in images]
    wrong = [key for key in image_ids if not isinstance(key, int) or not 0 <= key <= LARGEST_IMAGE_ID]
    if wrong:
        raise InputError(
            f"{path!r}: image id {wrong[0]!r} is not an integer from 0 to {LARGEST_IMAGE_ID}, which leaves room "
            "for annotation ids; pass the folder or a list of paths, which are renumbered"
        )
    return ImageList(root, "coco", [image_name(image, path) for image in images], image_ids)


def read_inputs(inputs: Sequence[str]) -> ImageList:
    """List all images given by paths or patterns, without duplicates, in order of first occurrence.

    A file may have any suffix. A folder stands for the images in it and its sub-folders. A pattern with ``*``, ``?`` or
    ``[...]`` (``**`` for any folders) is expanded here if it is quoted, which avoids the shell's limit on arguments.

    Args:
        inputs: at least one path or pattern.

    Returns:
        The images; file names are relative to the folder if it is the only input, else to the closest common folder.

    Raises:
        InputError: a path does not exist, or there is no image.
    """
    paths = dict.fromkeys(os.path.abspath(path) for name in inputs for path in _paths(name))
    if not paths:
        raise InputError("no image is named; pass files, folders or patterns")
    if len(inputs) == 1 and os.path.isdir(inputs[0]):
        root = os.path.abspath(inputs[0])
    else:
        root = _closest_folder(paths)
    names = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    return ImageList(root, "inputs", names)


def _paths(name: str) -> Iterable[str]:
    if os.path.isdir(name):
        return [item.path for item in read_image_list(name)]
    if os.path.lexists(name):
        return [name]
    if not glob.has_magic(name):
        raise InputError(f"{name!r} does not exist; pass files, folders or patterns such as 'photos/*.jpg'")
    matches = sorted(glob.glob(name, recursive=True))
    found = [path for path in matches if os.path.isfile(path)]
    if not found:
        folders = " (only folders; name one to use the images in it)" if matches else ""
        raise InputError(f"no file matches {name!r}{folders}")
    return found


def _closest_folder(paths: Iterable[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError as error:  # on Windows
        raise InputError("the images are on different drives; run the command once for each") from error
