"""From a config file and KEY VALUE pairs to a config, with errors that say what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_sohes_config

_MISSING_KEY = re.compile(r"Non-existent (?:config )?key: ([\w.]+)")


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and what to write instead."""


def load_config(config_file: str, options: Sequence[str] = ()) -> CfgNode:
    """Defaults of Detectron2 and of this package, then a yaml file, then KEY VALUE pairs.

    Args:
        config_file: path of a yaml file, with ``_BASE_`` as Detectron2 knows it; "" for the defaults alone.
        options: alternating keys and values, as from a command line; new ones only in nodes that take any, for example
            ``MODEL.VIT.OPTIONS.depth 4``.

    Returns:
        The config, not frozen.

    Raises:
        ConfigError: an unknown key (the message names the nearest known one), a value of the wrong type, or a file
            that cannot be read.
    """
    cfg = get_cfg()
    add_sohes_config(cfg)
    if config_file:
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except FileNotFoundError as error:
            raise ConfigError(
                f"config file {config_file!r}: {error.filename or config_file!r} does not exist"
            ) from error
        except (KeyError, AssertionError, ValueError, OSError, yaml.YAMLError) as error:
            raise ConfigError(f"config file {config_file!r}: {_explain(cfg, error)}") from error
    if len(options) % 2 or any(key.startswith("-") for key in options[::2]):
        raise ConfigError(
            "expected KEY VALUE pairs at the end of the command, after all flags that begin with --, got: "
            + " ".join(options)
        )
    for key, value in zip(options[::2], options[1::2]):
        try:
            if _is_free(cfg, key):
                cfg.merge_from_other_cfg(_nested(key, value))
            else:
                cfg.merge_from_list([key, value])
        except (KeyError, AssertionError, ValueError, AttributeError) as error:
            reason = _explain(cfg, error, key)
            raise ConfigError(f"config key {key} cannot be set to {value!r}: {reason}") from error
    return cfg


def near_matches(name: str, known: Iterable[str]) -> str:
    """`` Did you mean A, B?`` with the nearest of ``known``, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f" Did you mean {', '.join(near)}?" if near else ""


def _is_free(cfg: CfgNode, key: str) -> bool:
    """Whether ``key`` is a new one in a node that takes any (``OPTIONS``), which merge_from_list would refuse."""
    *parents, leaf = key.split(".")
    node: Any = cfg
    for parent in parents:
        node = node.get(parent) if isinstance(node, CfgNode) else None
    return isinstance(node, CfgNode) and node.is_new_allowed() and leaf not in node


def _nested(key: str, value: str) -> CfgNode:
    """``key`` and its value as the only ones of a config; the value is read as in a yaml file."""
    content: Any = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        content = {part: content}
    return CfgNode(content)


def _explain(cfg: CfgNode, error: BaseException, key: str = "") -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    missing = _MISSING_KEY.search(text)
    if missing is None and not isinstance(error, AttributeError):
        return text
    name = key or missing.group(1)
    keys = dict.fromkeys(_keys(cfg))
    if name in keys:  # an AttributeError of something else
        return text
    return f"there is no key {name}.{near_matches(name, keys) or _same_leaf(name, keys)}"


def _same_leaf(name: str, keys: Iterable[str]) -> str:
    """Keys that end alike, for a name given under the wrong parent."""
    same = [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return f" Did you mean {', '.join(same[:3])}?" if same else ""


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
