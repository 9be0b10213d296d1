"""Loading of weights: sources, checkpoint layouts, and reports of what was loaded.

`load_weights` serves the feature extractors of phase 1 and the backbones of phases 2 and 3, `read_weights` whole
models. Files are untrusted: no code in them is run, and the memory they can make this process allocate is bounded by
their size.
"""

from .files import read_weights, safetensors_metadata
from .sources import (
    BACKBONE,
    PREFIX,
    TORCHVISION_PREFIX,
    LoadReport,
    hub_cached_file,
    hub_reachable,
    load_weights,
    local_path,
    shipped_files,
    state_digest,
)

__all__ = [
    "BACKBONE",
    "LoadReport",
    "PREFIX",
    "TORCHVISION_PREFIX",
    "hub_cached_file",
    "hub_reachable",
    "load_weights",
    "local_path",
    "read_weights",
    "safetensors_metadata",
    "shipped_files",
    "state_digest",
]
