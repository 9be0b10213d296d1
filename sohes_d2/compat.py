"""Version compatibility: Detectron2 with current numpy, Pillow, setuptools and torch.

Two Detectron2 code bases are supported, both with version "0.6": the main branch of the official repository, and the
release of 2021 on package indexes. The release uses names that libraries have since removed.
`apply`, which ``import sohes_d2`` calls, applies exactly these patches:

==========================  ======================================  ====================================================
missing                     needed by                               patch
==========================  ======================================  ====================================================
``np.bool, float, int...``  release: masks, evaluators, data sets   aliases of the Python types, where missing
``PIL.Image.LINEAR``        release: default of a transform         alias of ``BILINEAR``
``detectron2._C``           release without compiled extension      a stub that fails when an op is *called*
``COCOeval_opt`` of _C      release: default of ``COCOEvaluator``   the plain ``COCOeval``, as in main
``pkg_resources``           both: ``detectron2.model_zoo``          a stub while that module is executed
optimizer in checkpoints    release: ``DefaultTrainer``             saved and restored, in main's format
torch's own schedulers      release: ``hooks.LRScheduler``          saved in checkpoints and restored, as in main
``random.sample`` of sets   release: mappers that return None       sets are converted to lists, as in main
==========================  ======================================  ====================================================

This module does not import Detectron2, torch or numpy: the patches are hooked to the import of Detectron2 and its
modules, so that label files, evaluation and the html report work without Detectron2.
``torch.load`` is not patched: checkpoints of both code bases load with its safe default, ``weights_only=True``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

_EXTENSION = "detectron2._C"
_REMEDY = "Write `import sohes_d2` before the first import of detectron2."
_INSTALL = "Run `sohes setup` (`python -m sohes_d2 setup` with this interpreter), or `make env`."


def apply() -> None:
    """Make Detectron2 importable. May be called repeatedly, before or after ``import detectron2``.

    Raises:
        ImportError: an earlier import of Detectron2 failed, and its objects are still in use.
    """
    if not any(isinstance(finder, _Detectron2Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Detectron2Finder())
    _remove_partly_imported()
    if "detectron2" in sys.modules:
        _restore_names()
    for name, patch in _AFTER_EXECUTION.items():
        if name in sys.modules:
            patch(sys.modules[name])


def require() -> None:
    """Check that Detectron2 is installed, without importing it.

    Raises:
        ImportError: not installed, or shadowed by an unrelated folder ``detectron2``; the message has the fix.
    """
    _package_folder()


def is_installed() -> bool:
    """Whether Detectron2 can be found for import."""
    try:
        _package_folder()
    except ImportError:
        return False
    return True


def has_compiled_ops() -> bool:
    """Whether Detectron2's compiled extension exists and loads (fast COCO evaluation, rotated and deformable ops).

    Use it for ``COCOEvaluator(..., use_fast_impl=has_compiled_ops())``. Imports torch on the first call.
    """
    if _extension_file() is None:
        return False
    try:
        importlib.import_module(_EXTENSION)
    except ImportError:  # built for another torch or Python version: treated as missing
        return False
    return True


def detectron2_flavour() -> str:
    """Describe the installed Detectron2 in one line for logs: code base, compiled ops and folder."""
    from detectron2 import __version__

    folder = _package_folder()
    source = "official main" if _is_main(folder) else "release"
    if has_compiled_ops():
        ops = "compiled ops"
    elif _extension_file() is None:
        ops = "no compiled ops"
    else:
        ops = "compiled ops that do not load with this torch"
    return f"detectron2 {__version__} ({source}, {ops}) at {folder}"


# ----------------------------------------------------------------------------------------------------------------------
# Names that numpy and Pillow removed. They are set permanently, because Detectron2 looks them up at every use.


def _restore_names() -> None:
    if _is_main(_package_folder()):
        return
    import numpy as np
    from PIL import Image

    # Up to numpy 1.23 these were aliases of the Python types, as the callers expect. Names that numpy defines again
    # (np.bool since 2.0) are not changed.
    for python_type in (bool, float, int, str):
        if python_type.__name__ not in dir(np):
            setattr(np, python_type.__name__, python_type)
    if not hasattr(Image, "LINEAR"):  # an alias of BILINEAR, removed in Pillow 10
        patched: Any = Image
        patched.LINEAR = Image.Resampling.BILINEAR


# ----------------------------------------------------------------------------------------------------------------------
# Patches hooked to the import of one Detectron2 module.


class _MissingOps(types.ModuleType):
    """Stub of ``detectron2._C``: version and CUDA queries work, and an op raises ImportError when it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Detectron2 was installed without its compiled extension.")
        # used by collect_env, whose output is logged at the start of training
        self.get_compiler_version = lambda: "none (no compiled ops)"
        self.get_cuda_version = lambda: "none (no compiled ops)"
        self.has_cuda = lambda: False

    def __getattr__(self, op: str) -> Callable:
        if op.startswith("__"):  # dunder names, which Python itself looks up
            raise AttributeError(op)

        def missing_op(*_args: object, **_kwargs: object) -> None:
            raise ImportError(
                f"detectron2._C.{op} was called, but this Detectron2 has no compiled ops. Install the official "
                "repository, which compiles them: `sohes setup --source git --force`."
            )

        missing_op.__name__ = op
        return missing_op


class _MissingOpsLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _MissingOps(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to execute."""


@contextmanager
def _pkg_resources_stub() -> Iterator[None]:
    """Provide ``pkg_resources`` for ``detectron2.model_zoo``, which uses it to locate package files.

    Recent versions of setuptools lack it. The stub exists only while that module is executed, so that no other library
    mistakes it for the real one.
    """
    if importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    stub: Any = types.ModuleType("pkg_resources")
    stub.resource_filename = _resource_filename
    sys.modules["pkg_resources"] = stub
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def _resource_filename(package: str, resource: str) -> str:
    return str(Path(str(importlib.import_module(package).__file__)).parent / resource)


def _use_plain_coco_eval(fast_eval_api: Any) -> None:
    if isinstance(sys.modules.get(_EXTENSION), _MissingOps):
        fast_eval_api.COCOeval_opt = fast_eval_api.COCOeval


def _checkpoint_optimizer(defaults: Any) -> None:
    """Let ``DefaultTrainer`` checkpoint its inner trainer, which owns the optimizer and the gradient scaler.

    Without this, resumed training silently restarts with empty momentum. Main already has these two methods.
    """
    trainer_class = defaults.DefaultTrainer
    if "state_dict" in vars(trainer_class):
        return

    def state_dict(self: Any) -> dict:
        return {**super(trainer_class, self).state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self: Any, state_dict: dict) -> None:
        super(trainer_class, self).load_state_dict(state_dict)
        if "_trainer" in state_dict:  # absent from checkpoints written without this patch
            self._trainer.load_state_dict(state_dict["_trainer"])

    trainer_class.state_dict = state_dict
    trainer_class.load_state_dict = load_state_dict


def _checkpoint_schedulers(hooks: Any) -> None:
    """Let the learning rate hook checkpoint any torch scheduler.

    The hook tests for ``_LRScheduler``, which torch's schedulers no longer subclass since torch 2.0. Without this,
    resumed training silently restarts with the learning rate of iteration 0.
    """
    if _is_main(_package_folder()):
        return
    from torch.optim.lr_scheduler import LRScheduler

    def state_dict(self: Any) -> dict:
        return self.scheduler.state_dict() if isinstance(self.scheduler, LRScheduler) else {}

    def load_state_dict(self: Any, state_dict: dict) -> None:
        if isinstance(self.scheduler, LRScheduler):
            self.scheduler.load_state_dict(state_dict)

    hooks.LRScheduler.state_dict = state_dict
    hooks.LRScheduler.load_state_dict = load_state_dict


class _SetSampler(random.Random):
    """Random generator for Detectron2's ``MapDataset``, which samples from sets; not allowed since Python 3.11."""

    def sample(self, population: Any, k: int, *, counts: Iterable[int] | None = None) -> list[Any]:
        return super().sample(list(population), k, counts=counts)


def _sample_from_sets(common: Any) -> None:
    if not _is_main(_package_folder()):
        common.random = types.SimpleNamespace(Random=_SetSampler)  # the only name of `random` that this module uses


_DURING_EXECUTION = {"detectron2.model_zoo.model_zoo": _pkg_resources_stub}
_AFTER_EXECUTION = {
    "detectron2.data.common": _sample_from_sets,
    "detectron2.evaluation.fast_eval_api": _use_plain_coco_eval,
    "detectron2.engine.defaults": _checkpoint_optimizer,
    "detectron2.engine.hooks": _checkpoint_schedulers,
}


class _Detectron2Finder(importlib.abc.MetaPathFinder):
    """Import hook that patches a few modules of Detectron2 when they are imported; ignores all others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "detectron2":
            if _installed_spec() is not None:
                _restore_names()
            return None
        if fullname == _EXTENSION:
            # Main handles a missing extension itself: the affected classes report that they are not available.
            if _extension_file() is not None or _is_main(_package_folder()):
                return None
            return importlib.machinery.ModuleSpec(fullname, _MissingOpsLoader())
        if fullname not in _DURING_EXECUTION and fullname not in _AFTER_EXECUTION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_with_patches(module: types.ModuleType) -> None:
                with _DURING_EXECUTION.get(fullname, nullcontext)():
                    execute(module)
                if fullname in _AFTER_EXECUTION:
                    _AFTER_EXECUTION[fullname](module)

            loader.exec_module = execute_with_patches
        return spec


# ----------------------------------------------------------------------------------------------------------------------
# Detection of the installed package, and clean-up after a failed import.


def _package_folder() -> Path:
    """The folder of the installed ``detectron2`` package, found without importing it."""
    loaded = sys.modules.get("detectron2")
    spec = loaded.__spec__ if loaded is not None else _installed_spec()
    if spec is None:
        raise ImportError(f"Detectron2 is not installed for {sys.executable}. {_INSTALL}")
    if spec.origin is None:
        # Typically the root of a git clone of Detectron2, with the package one level deeper.
        raise ImportError(
            f"`detectron2` is found at {list(spec.submodule_search_locations or [])}, a folder without __init__.py, "
            f"not the package. Start Python in another directory, or install Detectron2. {_INSTALL}"
        )
    return Path(spec.origin).parent


def _installed_spec() -> importlib.machinery.ModuleSpec | None:
    """The spec of ``detectron2``, according to all finders except the one in this module."""
    others = (finder for finder in sys.meta_path if not isinstance(finder, _Detectron2Finder))
    return next((spec for finder in others if (spec := finder.find_spec("detectron2", None))), None)


def _is_main(folder: Path) -> bool:
    """Whether this is the official main branch. Main and release have the same __version__; only main has this file."""
    return (folder / "utils" / "develop.py").is_file()


def _extension_file() -> Path | None:
    spec = importlib.machinery.PathFinder.find_spec(_EXTENSION, [str(_package_folder())])
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _remove_partly_imported() -> None:
    """Remove the modules left by a failed import of Detectron2, so that it can be imported again.

    When the import of a package fails, Python removes the package but keeps its completed submodules. A second import
    would reuse them and could fail on names registered twice or attributes never set.
    """
    orphans = {name for name in sys.modules if name.startswith("detectron2.") and _parent_is_missing(name)}
    if not orphans:
        return
    holders = sorted(_holders(orphans))
    if holders:
        raise ImportError(
            f"Detectron2 is partly imported: an earlier import of {min(orphans).rpartition('.')[0]} failed, and its "
            f"objects are still in use ({', '.join(holders[:5])}); this process cannot import it again. {_REMEDY}"
        )
    for name in orphans:
        del sys.modules[name]


def _parent_is_missing(name: str) -> bool:
    while "." in name:
        name = name.rpartition(".")[0]
        if name not in sys.modules:
            return True
    return False


def _holders(orphans: set[str]) -> Iterator[str]:
    """Yield ``module.name`` of each global outside ``orphans`` that is one of these modules or was defined in one."""
    orphan_modules = [sys.modules[name] for name in orphans]
    for module_name, module in list(sys.modules.items()):
        if module_name in orphans or not isinstance(module, types.ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if any(value is orphan for orphan in orphan_modules):
                if not module_name.startswith("detectron2"):  # Python sets these attributes again on import
                    yield f"{module_name}.{name}"
            # Not isinstance: it also accesses ``__class__`` of the value, which emits warnings in some libraries.
            elif issubclass(type(value), (type, types.FunctionType)) and value.__module__ in orphans:
                yield f"{module_name}.{name}"
