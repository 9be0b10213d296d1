#!/usr/bin/env python
"""Measure time and memory of the parts of a training iteration, and compare with the official Mask2Former head.

    python tools/benchmarks/benchmark_training.py  # a small model, on the CPU
    python tools/benchmarks/benchmark_training.py --config-file configs/sohes_vitb8_sa1b_instruction.yaml \\
        --device cuda --batch-size 2 MODEL.ANCESTOR_HEAD.ENABLED False
    git clone https://github.com/facebookresearch/Mask2Former
    python tools/benchmarks/benchmark_training.py --official Mask2Former

The batch consists of synthetic scenes of INPUT.IMAGE_SIZE with their true labels, and the model has random weights, so
no files are needed. The learning rate is 0, so that all iterations do the same work. Prints medians over iterations;
memory is the peak during a part minus the memory before the iteration, measured in a separate iteration: tensors on
CUDA devices, otherwise resident memory of the process.

With --official, the head of a checkout of that repository, which need not be installed or compiled, alternates with
ours in this process, with the same weights, features, labels and sampled points. Both have no ancestor head then, since
the official one has none. Without its compiled extension it computes deformable attention in plain PyTorch, as on CPUs.

Exit code: 0, 1 the official head's outputs, losses or gradients differ from ours, 2 usage error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sohes_d2.cli.runner import make_main, tool_parser

DEFAULT_CONFIG = os.path.join(os.path.dirname(__file__), "..", "..", "configs", "sohes_synthetic_instruction.yaml")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--config-file", default=DEFAULT_CONFIG, help="default: configs/sohes_synthetic_instruction.yaml")
    add("--device", default="cpu", help="default: cpu")
    add("--batch-size", type=int, default=4, metavar="N", help="scenes per iteration (default: 4)")
    add("--iterations", type=int, default=5, metavar="N", help="timed iterations (default: 5)")
    add("--official", metavar="DIR", help="a checkout of facebookresearch/Mask2Former")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and values")
    args = parser.parse_args(arguments)
    if args.batch_size < 1 or args.iterations < 1:
        parser.error("--batch-size and --iterations must be at least 1")
    return args


if __name__ == "__main__":
    parse_arguments()  # handle --help and errors before slow imports

import torch
from part_meter import MIB, PartMeter
from torch import Tensor, nn

import sohes_d2  # noqa: F401  (before Detectron2, which it patches)
from sohes_d2 import correction  # noqa: F401  (registers the models)
from sohes_d2.config.load import load_config
from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.engine.optimizer import build_optimizer
from sohes_d2.engine.step import build_precision
from sohes_d2.errors import ConfigError
from sohes_d2.structures.instance_fields import AncestorMatrix
from sohes_d2.structures.masks import decode_masks

# Relative to the largest value. Masked attention is discontinuous where the sign of a logit depends on rounding.
TOLERANCE = 1e-2
BACKBONE, PIXELS, QUERIES = "backbone", "pixel decoder", "transformer decoder"
MATCHING, LOSSES = "matching", "losses"
QUERIES_BACK, PIXELS_BACK = "backward: losses, transformer decoder", "backward: pixel decoder"
BACKBONE_BACK, OPTIMIZER = "backward: backbone", "optimizer"
HEAD_PARTS = (PIXELS, QUERIES, MATCHING, LOSSES, QUERIES_BACK, PIXELS_BACK)
OUR_PARTS = (BACKBONE, *HEAD_PARTS, BACKBONE_BACK, OPTIMIZER)


def make_batch(count: int, side: int, seed: int = 0) -> list[dict[str, Any]]:
    """Training inputs: synthetic scenes of ``side`` x ``side`` pixels with their true labels."""
    from detectron2.structures import BitMasks, Instances

    batch = []
    for index in range(count):
        image, forest = generate_scene(seed, index, (side, side))
        instances = Instances((side, side))
        instances.gt_classes = torch.zeros(len(forest), dtype=torch.int64)
        instances.gt_masks = BitMasks(torch.from_numpy(decode_masks(forest.masks)))
        instances.gt_ancestors = AncestorMatrix(torch.from_numpy(forest.ancestors()))
        batch.append({"image": torch.from_numpy(image).permute(2, 0, 1), "instances": instances})
    return batch


def cut(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detach tensors as leaves of a new graph, so that the backward pass of each part can be measured alone."""
    return [tensor.detach().requires_grad_() for tensor in tensors]


def backward_through(tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Continue the backward pass with the gradients of ``leaves``, made by `cut` of ``tensors``."""
    pairs = [(x, leaf.grad) for x, leaf in zip(tensors, leaves) if x.requires_grad and leaf.grad is not None]
    if pairs:
        torch.autograd.backward(*zip(*pairs))


@dataclass
class Head:
    """A head and its criterion, ours or the official one: their children have the same names and signatures.

    Attributes:
        pixel_decoder, predictor, criterion: the modules.
        weights: weights of the losses; other losses are not summed.
        autocast, scaler: for the forward and the backward pass.
        meter: measures the parts.
    """

    pixel_decoder: nn.Module
    predictor: nn.Module
    criterion: nn.Module
    weights: dict[str, float]
    autocast: torch.autocast
    scaler: torch.amp.GradScaler
    meter: PartMeter

    def run(self, features: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> tuple[dict[str, Any], dict]:
        """Forward and backward through all parts; features receive gradients.

        Returns:
            The predictor's outputs and the unweighted losses.
        """
        part, autocast = self.meter.part, self.autocast
        with part(PIXELS), autocast:
            mask_features, _, pyramid = self.pixel_decoder.forward_features(features)
        maps = [mask_features, *pyramid]
        leaves = cut(maps)
        with part(QUERIES), autocast:
            outputs = self.predictor(leaves[1:], leaves[0])
        torch.manual_seed(0)  # the same points in every iteration
        with part(LOSSES), autocast, self._matching_counted():
            losses = self.criterion(outputs, targets)
            total = sum(loss * self.weights[name] for name, loss in losses.items() if name in self.weights)
        with part(QUERIES_BACK):
            self.scaler.scale(total).backward()
        del total
        with part(PIXELS_BACK):
            backward_through(maps, leaves)
        return outputs, losses

    @contextmanager
    def _matching_counted(self) -> Iterator[None]:
        """Count the time of the matcher, which is called within `LOSSES`, as `MATCHING` instead."""
        meter, matcher, starts = self.meter, self.criterion.matcher, []

        def stop(*_: Any) -> None:
            seconds = meter.now() - starts.pop()
            meter.add(MATCHING, seconds)
            meter.add(LOSSES, -seconds)

        hooks = (
            matcher.register_forward_pre_hook(lambda *_: starts.append(meter.now())),
            matcher.register_forward_hook(stop),
        )
        yield
        for hook in hooks:
            hook.remove()

    def gradients(self) -> list[Tensor]:
        """Gradients of all parameters that have one, sorted by name."""
        named = [*self.pixel_decoder.named_parameters("pixel_decoder"), *self.predictor.named_parameters("predictor")]
        return [parameter.grad.clone() for _, parameter in sorted(named) if parameter.grad is not None]

    def zero_grad(self) -> None:
        self.pixel_decoder.zero_grad()
        self.predictor.zero_grad()


class Training:
    """A model of a config, its optimizer, and a batch."""

    def __init__(self, cfg: Any, batch_size: int):
        from detectron2.modeling import build_model

        if cfg.MODEL.META_ARCHITECTURE != "SOHES":
            raise ConfigError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only SOHES can be measured")
        torch.manual_seed(0)
        self.model = build_model(cfg).train()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                # Untrained deformable attention samples exactly at cell centres, where it is not differentiable.
                if "sampling_offsets" in name:
                    parameter += 0.01 * torch.randn_like(parameter)
        self.optimizer = build_optimizer(cfg, self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.autocast, self.scaler = build_precision(cfg)
        self.meter = PartMeter(cfg.MODEL.DEVICE)
        self.batch = make_batch(batch_size, cfg.INPUT.IMAGE_SIZE)
        head, criterion = self.model.sem_seg_head, self.model.criterion
        self.head = Head(
            head.pixel_decoder,
            head.predictor,
            criterion,
            criterion.weight_dict,
            self.autocast,
            self.scaler,
            self.meter,
        )
        images = self.model.preprocess(self.batch)
        self.targets = self.model.prepare_targets(self.batch, tuple(images.tensor.shape[-2:]))

    def features(self) -> dict[str, Tensor]:
        """Feature maps of the backbone for the batch."""
        with self.autocast:
            maps = self.model.backbone(self.model.preprocess(self.batch).tensor)
        return {name: maps[name] for name in self.model.sem_seg_head.in_features}

    def iterate(self, memory: bool = False) -> None:
        """One iteration."""
        with self.meter.round(memory):
            with self.meter.part(BACKBONE):
                features = self.features()
            leaves = cut(features.values())
            self.head.run(dict(zip(features, leaves)), self.targets)
            with self.meter.part(BACKBONE_BACK):
                backward_through(list(features.values()), leaves)
            with self.meter.part(OPTIMIZER):
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()


def import_official(folder: str) -> Callable[[str], Any]:
    """Make a checkout of Mask2Former's repository importable; returns a function that imports its modules by name.

    Raises:
        ConfigError: the folder is not a checkout of it.
    """
    if not os.path.isfile(os.path.join(folder, "mask2former", "modeling", "criterion.py")):
        raise ConfigError(f"--official: {folder!r} is not a checkout of facebookresearch/Mask2Former")
    # Skip the __init__ files of these, which import data sets, evaluators and Swin, with more dependencies.
    for name in ("mask2former", "mask2former.modeling"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(folder, *name.split("."))]
        sys.modules.setdefault(name, package)
    # The compiled extension is imported, but not needed: if a call into it fails, plain PyTorch is used.
    extension = "MultiScaleDeformableAttention"
    if extension not in sys.modules and importlib.util.find_spec(extension) is None:
        sys.modules[extension] = types.ModuleType(extension)
    return lambda name: importlib.import_module(f"mask2former.modeling.{name}")


def build_official(folder: str, cfg: Any, training: Training) -> Head:
    """The official head with the settings of a config and the weights of our model's head.

    Raises:
        ConfigError: the folder is not a checkout, or the official head does not support the settings.
    """
    module = import_official(folder)
    head, settings = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    shapes = training.model.backbone.output_shape()
    pixel_decoder = module("pixel_decoder.msdeformattn").MSDeformAttnPixelDecoder(
        {name: shapes[name] for name in head.IN_FEATURES},
        transformer_dropout=0.0,
        transformer_nheads=head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
        transformer_dim_feedforward=head.ENC_DIM_FEEDFORWARD,
        transformer_enc_layers=head.TRANSFORMER_ENC_LAYERS,
        conv_dim=head.CONVS_DIM,
        mask_dim=head.MASK_DIM,
        norm=head.NORM,
        transformer_in_features=head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
        common_stride=head.COMMON_STRIDE,
    )
    decoder = module("transformer_decoder.mask2former_transformer_decoder").MultiScaleMaskedTransformerDecoder
    predictor = decoder(
        head.CONVS_DIM,
        num_classes=head.NUM_CLASSES,
        hidden_dim=settings.HIDDEN_DIM,
        num_queries=settings.NUM_OBJECT_QUERIES,
        nheads=settings.NHEADS,
        dim_feedforward=settings.DIM_FEEDFORWARD,
        dec_layers=settings.DEC_LAYERS - 1,
        pre_norm=settings.PRE_NORM,
        mask_dim=head.MASK_DIM,
        enforce_input_project=settings.ENFORCE_INPUT_PROJ,
    )
    ours = training.model.sem_seg_head
    try:
        pixel_decoder.load_state_dict(ours.pixel_decoder.state_dict())
        predictor.load_state_dict(ours.predictor.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"the official head cannot load the weights of ours: {error}") from error
    criterion = module("criterion").SetCriterion(
        head.NUM_CLASSES,
        matcher=module("matcher").HungarianMatcher(
            settings.CLASS_WEIGHT, settings.MASK_WEIGHT, settings.DICE_WEIGHT, settings.TRAIN_NUM_POINTS
        ),
        weight_dict=training.head.weights,
        eos_coef=settings.NO_OBJECT_WEIGHT,
        losses=["labels", "masks"],
        num_points=settings.TRAIN_NUM_POINTS,
        oversample_ratio=settings.OVERSAMPLE_RATIO,
        importance_sample_ratio=settings.IMPORTANCE_SAMPLE_RATIO,
    )
    modules = [each.to(cfg.MODEL.DEVICE).train() for each in (pixel_decoder, predictor, criterion)]
    return Head(*modules, training.head.weights, training.autocast, training.scaler, PartMeter(cfg.MODEL.DEVICE))


def largest_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors divided by the largest value of the first."""
    if len(a) != len(b):
        return float("inf")
    scale = max((float(x.abs().max()) for x in a if x.numel()), default=0.0)
    return max((float((x - y).abs().max()) for x, y in zip(a, b) if x.numel()), default=0.0) / max(scale, 1e-30)


def compare(ours: Head, official: Head, features: dict[str, Tensor], targets: list[dict]) -> dict[str, float]:
    """`largest_difference` of outputs, losses and gradients of two heads, on the same features and points."""
    found = []
    for head in (ours, official):
        with head.meter.round(memory=True):  # the first round of a process is not timed
            outputs, losses = head.run(dict(zip(features, cut(features.values()))), targets)
        layers = [outputs, *outputs.get("aux_outputs", ())]
        found.append(
            {
                **{name: [layer[name].detach() for layer in layers] for name in ("pred_logits", "pred_masks")},
                "losses": [losses[name].detach() for name in sorted(losses)],
                "gradients": head.gradients(),
            }
        )
        head.zero_grad()
    return {name: largest_difference(found[0][name], found[1][name]) for name in found[0]}


def measure_training(training: Training, iterations: int) -> None:
    """Measure time, and then memory, of whole iterations; the first is discarded."""
    training.iterate(memory=True)
    for memory in [False] * iterations + [True]:
        training.iterate(memory)


def measure_heads(
    heads: Sequence[Head], features: dict[str, Tensor], targets: list[dict[str, Tensor]], iterations: int
) -> None:
    """Measure time, and then memory, of heads that alternate on the same features."""
    for memory in [False] * iterations + [True]:
        for head in heads:
            with head.meter.round(memory):
                head.run(dict(zip(features, cut(features.values()))), targets)
            head.zero_grad()


def table(meter: PartMeter) -> str:
    """Table of time and memory of the parts of an iteration."""
    total = meter.seconds(*OUR_PARTS)
    lines = [f"{'part':40}{'ms':>9}{'share':>8}{'peak MiB':>10}"]
    for name in OUR_PARTS:
        seconds = meter.seconds(name)
        lines.append(f"{name:40}{1e3 * seconds:9.1f}{seconds / total:8.1%}{_mebibytes(meter, name):>10}")
    lines.append(f"{'iteration':40}{1e3 * total:9.1f}{1:8.1%}{_mebibytes(meter, *OUR_PARTS):>10}")
    return "\n".join(lines)


def table_of_two(ours: PartMeter, official: PartMeter) -> str:
    """Table of time and memory of the parts of both heads, and the ratio of times."""
    lines = [f"{'part of the head alone':40}{'ours ms':>9}{'official':>10}{'ratio':>7}{'ours MiB':>10}{'official':>10}"]
    for name, parts in [*((name, (name,)) for name in HEAD_PARTS), ("head", HEAD_PARTS)]:
        mine, theirs = ours.seconds(*parts), official.seconds(*parts)
        lines.append(
            f"{name:40}{1e3 * mine:9.1f}{1e3 * theirs:10.1f}{theirs / mine:7.2f}"
            f"{_mebibytes(ours, *parts):>10}{_mebibytes(official, *parts):>10}"
        )
    return "\n".join(lines)


def _mebibytes(meter: PartMeter, *parts: str) -> str:
    """The highest peak of some parts; "" for matching, which is part of the losses."""
    peaks = [meter.peaks[part] for part in parts if part in meter.peaks]
    return f"{max(peaks) / MIB:.0f}" if peaks else ""


def run(args: argparse.Namespace) -> int:
    """Measure and print the numbers; returns the exit code."""
    # the official code uses deprecated names of torch
    warnings.filterwarnings("ignore", category=FutureWarning)
    official = None
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = args.device
    if args.official:
        cfg.MODEL.ANCESTOR_HEAD.ENABLED = False
        if cfg.SOLVER.AMP.ENABLED and torch.device(args.device).type != "cuda":
            raise ConfigError("the official head supports mixed precision only on CUDA: set SOLVER.AMP.ENABLED False")
    cfg.freeze()
    training = Training(cfg, args.batch_size)
    if args.official:
        official = build_official(args.official, cfg, training)
    side, labels = cfg.INPUT.IMAGE_SIZE, sum(len(target["labels"]) for target in training.targets)
    precision = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32"
    print(
        f"{os.path.basename(args.config_file)}: {args.batch_size} scenes of {side} x {side} pixels, {labels} labels, "
        f"{cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES} queries; {args.device}, {torch.get_num_threads()} threads, "
        f"{precision}",
        flush=True,
    )
    measure_training(training, args.iterations)
    print(table(training.meter))
    print(f"iterations/s {1 / training.meter.seconds(*OUR_PARTS):.3g}", flush=True)
    if official is None:
        return 0
    features = {name: each.detach() for name, each in training.features().items()}
    ours = replace(training.head, meter=PartMeter(args.device))
    differences = compare(ours, official, features, training.targets)
    measure_heads((ours, official), features, training.targets, args.iterations)
    print("\n" + table_of_two(ours.meter, official.meter))
    print("largest differences: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    equal = max(differences.values()) <= TOLERANCE
    print(f"equal {equal}")
    return 0 if equal else 1


main = make_main("benchmark_training", parse_arguments, run)


if __name__ == "__main__":
    sys.exit(main())
