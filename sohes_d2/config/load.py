"""Loading of configs from a yaml file and KEY VALUE pairs, with errors that suggest the intended key.

Files are not trusted: tags are refused, and size, depth and the number of values after expanding aliases are limited.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any

import yaml
from yacs.config import CfgNode

from ..compat import is_installed
from ..errors import ConfigError, near_matches
from ..structures.files import open_regular
from . import add_sohes_config, exploration_cfg
from .renamed import check_names, value_of

BASE_KEY = "_BASE_"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Far more than any config needs.
_MAX_BYTES = 1 << 20
_MAX_VALUES = 20_000  # after expanding aliases (*name)
_MAX_DEPTH = 32
_MAX_BASES = 16

_MISMATCH = re.compile(
    r"Type mismatch \(<class '([\w.]+)'> vs\. <class '([\w.]+)'>\).* config key: ([\w.]+)", re.DOTALL
)
_MISSING_KEY = re.compile(r"Non-existent (?:config )?key: ([\w.]+)")


def configs_folder() -> str:
    """The folder of the configs: ``sohes_d2/configs`` of an installed package, ``configs`` in a clone."""
    inside = os.path.join(_PACKAGE, "configs")
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(_PACKAGE), "configs")


def shipped_configs() -> dict[str, str]:
    """Paths of the configs shipped with the package, by name: the path relative to configs/, without suffix."""
    folder = configs_folder()
    found = {}
    for current, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(current, name)
            if name.endswith(".yaml"):
                found[os.path.relpath(path, folder)[: -len(".yaml")].replace(os.sep, "/")] = path
    return dict(sorted(found.items()))


def get_config_file(name: str | os.PathLike[str]) -> str:
    """Find a config: an existing file, or one shipped with the package.

    Args:
        name: a path, or a name: ``exploration/joint``, ``exploration/joint.yaml``, or ``joint`` if it is unique.

    Raises:
        ConfigError: not found; the message suggests similar names.
    """
    name = os.fspath(name)
    if os.path.lexists(name):
        return name
    known = shipped_configs()
    wanted = name.replace(os.sep, "/").removeprefix("configs/").removesuffix(".yaml")
    matches = [wanted] if wanted in known else [full for full in known if full.rpartition("/")[2] == wanted]
    if len(matches) > 1:
        raise ConfigError(f"config {name!r} could be {' or '.join(matches)}; use one of these names")
    if not matches:
        names = dict.fromkeys([*known, *(full.rpartition("/")[2] for full in known)])
        raise ConfigError(
            f"config file {name!r} does not exist, and no config of that name is shipped with the package."
            + near_matches(wanted, names)
        )
    return known[matches[0]]


def load_config(config_file: str, options: Sequence[str] = ()) -> CfgNode:
    """Build a config from the defaults of Detectron2 and this package, a yaml file, and KEY VALUE pairs.

    Without Detectron2 it has only the keys of phase 1, see `exploration_cfg`.

    Args:
        config_file: path of a yaml file, with ``_BASE_`` as in Detectron2, or the name of a shipped config, see
            `get_config_file`; "" for the defaults alone.
        options: alternating keys and values, as from a command line; new keys are allowed only in nodes that accept
            any, for example ``MODEL.VIT.OPTIONS.depth 4``.

    Returns:
        The config, not frozen.

    Raises:
        ConfigError: an unknown key (the message suggests the nearest known one), a value of the wrong type, or an
            unreadable file.
    """
    cfg = _defaults()
    for path, content in _read_with_bases(get_config_file(config_file)) if config_file else ():
        if content.get("VERSION", cfg.VERSION) != cfg.VERSION:
            raise ConfigError(f"config file {path!r}: VERSION is {content['VERSION']!r}, not {cfg.VERSION}")
        check_names(content, f"config file {path!r}")
        _take_out_data_sets(cfg, content)
        try:
            cfg.merge_from_other_cfg(type(cfg)(content))
        except _MERGE_ERRORS as error:
            raise ConfigError(f"config file {path!r}: {_explain(cfg, error)}") from error
    if len(options) % 2 or any(key.startswith("-") for key in options[::2]):
        raise ConfigError(
            "expected KEY VALUE pairs at the end of the command, after all flags that begin with --, got: "
            + " ".join(options)
        )
    for key, value in zip(options[::2], options[1::2]):
        content = _with_parents(key, value)
        check_names(content, f"config key {key}")
        _take_out_data_sets(cfg, content)
        try:
            if _is_free(cfg, key):  # the value is read as in a yaml file
                cfg.merge_from_other_cfg(type(cfg)(_with_parents(key, read_yaml(value, key))))
            else:
                cfg.merge_from_list([key, value])
        except (*_MERGE_ERRORS, AttributeError) as error:
            reason = _explain(cfg, error, key)
            raise ConfigError(f"config key {key} cannot be set to {value!r}: {reason}") from error
    return cfg


def _defaults() -> CfgNode:
    if not is_installed():
        return exploration_cfg()
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_sohes_config(cfg)
    return cfg


# The last three are raised by values (Python literals) that are nested too deeply.
_MERGE_ERRORS = (KeyError, AssertionError, ValueError, TypeError, MemoryError, RecursionError)


def read_yaml(text: str | bytes, where: str) -> Any:
    """Read yaml text (numbers, strings, lists and mappings) without running code from it.

    Args:
        text: the yaml, as text or in UTF-8.
        where: origin of the text, for messages.

    Raises:
        ConfigError: not yaml, has a tag (such as ``!!python/object``), or is too large or deep; the message names
            the line.
    """
    try:
        if len(text) > _MAX_BYTES:
            raise ConfigError(f"{where}: it is larger than {_MAX_BYTES} bytes; pass a yaml file")
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        _check_depth(text)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_expanded(node, where)
        return None if node is None else loader.construct_document(node)
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text; pass a yaml file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {_yaml_reason(error)}") from error
    except (ValueError, RecursionError, OverflowError, TypeError) as error:  # values that Python cannot represent
        raise ConfigError(f"{where}: a value cannot be read ({type(error).__name__}: {error})") from error


def _check_depth(text: str) -> None:
    """Limit the nesting: the yaml parser recurses, and could exceed Python's stack."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {_MAX_DEPTH} deep", event.start_mark)


def _check_expanded(root: yaml.Node | None, where: str) -> None:
    """Limit the number of values after expanding aliases: a few lines of yaml can expand to billions of values."""
    count = 0
    stack = [root]
    while stack:
        node = stack.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ConfigError(f"{where}: after expanding aliases (*name) it has more than {_MAX_VALUES} values")
        if isinstance(node, yaml.MappingNode):
            stack += [inner for pair in node.value for inner in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value


def _yaml_reason(error: yaml.YAMLError) -> str:
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).partition("\n")[0]
    mark = getattr(error, "problem_mark", None)
    line = f" in line {mark.line + 1}" if mark else ""
    if "could not determine a constructor for the tag" in reason:
        return f"the tag {reason.rpartition(' ')[2]}{line}: tags can run code, so they are not allowed"
    return f"invalid yaml: {reason}{line}"


def _read_with_bases(file: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a config file and its chain of ``_BASE_`` files (relative paths); (path, content) pairs, the base first."""
    contents: list[tuple[str, dict[str, Any]]] = []
    path, named_by = file, ""
    while path:
        if len(contents) == _MAX_BASES:
            raise ConfigError(f"config file {file!r}: {BASE_KEY} forms a cycle or has more than {_MAX_BASES} files")
        content = _read_mapping(path, f"config file {path!r}{named_by}")
        base = content.pop(BASE_KEY, "")
        if not isinstance(base, str):
            raise ConfigError(f"config file {path!r}: {BASE_KEY} is {base!r}, not the path of a file")
        contents.append((path, content))
        named_by = f" ({BASE_KEY} of {path!r})"
        path = base and os.path.join(os.path.dirname(path), os.path.expanduser(base))
    return contents[::-1]


def _read_mapping(path: str, where: str) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = read_yaml(file.read(_MAX_BYTES + 1), where)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; pass a yaml file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: contains {type(content).__name__}, not keys and values; pass a yaml file")
    _check_keys(content, where)
    return content


def _check_keys(content: Mapping[Any, Any], where: str) -> None:
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the key {key!r} is not a string")
        if isinstance(value, dict):
            _check_keys(value, where)


def _take_out_data_sets(cfg: CfgNode, content: Mapping[str, Any]) -> None:
    """Remove data sets from DATASETS.REGISTER that ``content`` redefines, possibly in another form."""
    old, new = _data_sets(cfg), _data_sets(content)
    for name, value in new.items():
        if not isinstance(value, Mapping) or not isinstance(old.get(name), Mapping):
            old.pop(name, None)


def _data_sets(content: Any) -> dict[str, Any]:
    data_sets = value_of(content, "DATASETS.REGISTER")
    return data_sets if isinstance(data_sets, dict) else {}


def _is_free(cfg: CfgNode, key: str) -> bool:
    """Whether ``key`` is new in a node that allows new keys (``OPTIONS``), which merge_from_list rejects."""
    parent, _, leaf = key.rpartition(".")
    node = value_of(cfg, parent)
    return isinstance(node, CfgNode) and node.is_new_allowed() and leaf not in node


def _with_parents(key: str, value: Any) -> dict[str, Any]:
    """Nested dicts for a value under a dotted key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


_TYPES = dict.fromkeys(("detectron2.config.config.CfgNode", "fvcore.common.config.CfgNode"), "a section of keys")


def _explain(cfg: CfgNode, error: BaseException, key: str = "") -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    missing, mismatch = _MISSING_KEY.search(text), _MISMATCH.match(text)
    if mismatch:  # omit the values, which can be whole sections
        return f"Type mismatch: {mismatch[3]} is {_TYPES.get(mismatch[1], mismatch[1])}, not {mismatch[2]}"
    if missing is None and not isinstance(error, AttributeError):
        return shorten(text, 300)
    name = key or (missing.group(1) if missing else "")
    keys = dict.fromkeys(_keys(cfg))
    if name in keys:  # an AttributeError with another cause
        return text
    without = "" if is_installed() else " without Detectron2, which `sohes setup` installs"
    return f"there is no key {name}{without}.{near_matches(name, keys) or _same_leaf(name, keys)}"


def _same_leaf(name: str, keys: Iterable[str]) -> str:
    """Suggest keys with the same last part, for a key under the wrong parent."""
    same = [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return f" Did you mean {', '.join(same[:3])}?" if same else ""


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
