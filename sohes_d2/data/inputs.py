"""Expansion of files, folders and glob patterns on a command line to one list of photos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence

from .sources import ImageList, SourceError, read_image_list


def read_inputs(inputs: Sequence[str]) -> ImageList:
    """All images that some paths name, each once, in the order in which they are named first.

    A file is taken whatever its suffix (it was asked for by name); of a folder, the images in it and its sub-folders;
    a pattern with ``*``, ``?`` or ``[...]`` stands for what it matches (``**`` for any folders) and may be quoted, so
    that a shell with a limit on arguments never sees the matches.

    Args:
        inputs: at least one path or pattern.

    Returns:
        File names are relative to the folder if there is only that, else to the closest folder above all images.

    Raises:
        SourceError: nothing there, or no image among it.
    """
    paths = dict.fromkeys(os.path.abspath(path) for name in inputs for path in _paths(name))
    if not paths:
        raise SourceError("no image is named; pass files, folders or patterns")
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
        raise SourceError(f"{name!r} does not exist; pass files, folders or patterns such as 'photos/*.jpg'")
    matches = sorted(glob.glob(name, recursive=True))
    found = [path for path in matches if os.path.isfile(path)]
    if not found:
        folders = " (folders only; name one to take the images in it)" if matches else ""
        raise SourceError(f"no file matches {name!r}{folders}")
    return found


def _closest_folder(paths: Iterable[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError as error:  # on Windows
        raise SourceError("the images lie on different drives; run the command once for each") from error
