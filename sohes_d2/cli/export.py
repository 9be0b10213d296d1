"""Export the weights of one model from a checkpoint, without optimizer state, with the matching config.

    sohes export output/correction/model_final.pth --output output/exported
    sohes export output/correction/model_final.pth --which student --half --output output/exported
    sohes export output/instruction/model_final.pth --config-file CONFIG.yaml --output output/exported
    sohes train --config-file output/exported/config.yaml --eval-only --num-gpus 0

From a checkpoint of phase 3, which has teacher and student, one of them is written in the plain architecture of
phase 2. A checkpoint of phase 2 becomes smaller. The folder receives model.safetensors (or model.pth) and config.yaml
with its path as MODEL.WEIGHTS. KEY VALUE at the end changes that config, for example MODEL.VIT.WEIGHTS "" to omit the
initial weights.

Exit code: 0 done, 2 the checkpoint, the config or the arguments cannot be used.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError
from ..structures.files import check_output
from .runner import add_config_file, make_main, tool_parser

if TYPE_CHECKING:
    from torch import Tensor

MODELS = ("teacher", "student")
BOTH, ONE = "SOHESMutualLearning", "SOHES"
FORMATS = ("safetensors", "pth")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes export")
    add = parser.add_argument
    add("checkpoint", help=".pth file of a training")
    add_config_file(parser, "config of that training (default: config.yaml beside the checkpoint)")
    add("--which", choices=MODELS, help="model in a checkpoint of phase 3; default: teacher")
    add("--output", required=True, help="folder for the two files; created if missing")
    add("--format", choices=FORMATS, default=FORMATS[0], help="weights format; default: %(default)s")
    add("--half", action="store_true", help="weights in float16: half the size, nearly the same results")
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys and values, at the end of the command")
    return parser.parse_intermixed_args(arguments)


def model_state(checkpoint: Any, which: str | None) -> dict[str, Tensor]:
    """Tensors of one model of a checkpoint, with current names of the plain architecture.

    Args:
        checkpoint: content of the file.
        which: "teacher" or "student"; None: the teacher if there are both, else the only model.

    Raises:
        WeightsError: there is no such model.
    """
    from torch import Tensor

    from ..weights.layouts import current_names

    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError("it contains no model: no dict of names to tensors at the top level or under 'model'")
    if any(key.startswith(f"{name}.") for key in state for name in MODELS):
        prefix = f"{which or 'teacher'}."
        state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    elif which:
        raise WeightsError(f"it has no {which}: it contains a single model; omit --which")
    return current_names(state)


def check_fit(state: Mapping[str, Tensor], cfg: Any) -> None:
    """Check that the weights match the model of the config.

    Raises:
        WeightsError: names or shapes differ.
    """
    from detectron2.modeling import build_model

    from .. import correction  # noqa: F401  (registers the models)

    on_cpu = cfg.clone()
    on_cpu.MODEL.DEVICE = "cpu"
    wanted = {key: value.shape for key, value in build_model(on_cpu).state_dict().items()}
    wrong = sorted(
        {key for key, value in state.items() if wanted.get(key) != value.shape} | (wanted.keys() - state.keys())
    )
    if wrong:
        raise WeightsError(
            f"it does not match the model of the config: {len(wrong)} of {len(wanted)} tensors are missing, unknown "
            f"or of another shape, among them {', '.join(wrong[:3])}. Pass the config of its training as --config-file"
        )


def as_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to float16.

    Raises:
        WeightsError: a value is outside the range of float16.
    """
    import torch

    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    for key, value in halved.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{key} has values that are not finite in float16; omit --half")
    return halved


def write_weights(state: Mapping[str, Tensor], path: str) -> None:
    """Write a safetensors or torch file, depending on the suffix, atomically."""
    import torch

    from ..structures.files import atomic_writer

    # copied: tensors of a checkpoint may be views of larger ones, which torch would store whole and safetensors reject
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    with atomic_writer(path) as file:
        if path.endswith(".pth"):
            torch.save({"model": state}, file)
        else:
            from safetensors.torch import save

            file.write(save(state, metadata={"format": "pt"}))


def export(args: argparse.Namespace) -> None:
    """Write weights and config, and print what was written."""
    # imported after parsing: these take seconds
    from ..config.load import load_config
    from ..structures.files import atomic_writer
    from ..weights import read_weights

    check_output(args.output, folder=True)
    checkpoint = read_weights(args.checkpoint)
    config_file = args.config_file or os.path.join(os.path.dirname(args.checkpoint), "config.yaml")
    path = os.path.join(args.output, f"model.{args.format}")
    # not the folder of the weights, since training writes its own config.yaml into OUTPUT_DIR
    own = ["MODEL.WEIGHTS", path, "OUTPUT_DIR", os.path.join(args.output, "evaluation")]
    try:
        state = model_state(checkpoint, args.which)
        cfg = load_config(config_file, [*own, *args.opts])
        if cfg.MODEL.META_ARCHITECTURE == BOTH:
            cfg.MODEL.META_ARCHITECTURE = ONE
        check_fit(state, cfg)
        state = as_half(state) if args.half else state
    except WeightsError as error:
        raise WeightsError(f"{args.checkpoint!r}: {error}") from error
    os.makedirs(args.output, exist_ok=True)
    write_weights(state, path)
    with atomic_writer(os.path.join(args.output, "config.yaml")) as file:
        file.write(cfg.dump().encode())
    before, after = (os.path.getsize(name) / 1e6 for name in (args.checkpoint, path))
    print(f"{path}: {after:.1f} MB, from {before:.1f} MB; its config is config.yaml in the same folder")


main = make_main("sohes export", parse_arguments, export)
