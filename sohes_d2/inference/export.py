"""Export a trained segmenter to ONNX or torch.export files that run without this package and Detectron2.

An exported file maps ``image`` (1, 3, H, W), float32 RGB in 0..255, to ``logits`` (1, Q, K + 1), whose last class is
"no entity"; ``masks`` (1, Q, H/4, W/4), logits; and, if the model has an ancestor head, ``ancestors`` (1, Q, Q), where
[i, j] is the probability that i is an ancestor of j, 0 on the diagonal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..data.synthetic.scene import generate_scene
from ..errors import InputError, SOHESError
from ..modeling.ancestor_head import ancestor_logits
from ..modeling.deformable_attention import MSDeformAttn
from ..modeling.meta_arch import SOHES
from ..structures.files import atomic_writer, output_errors, sync_folder, write_bytes

SUFFIXES = (".onnx", ".pt2")
# The native opset of torch's exporter; earlier ones cannot resize with antialiasing.
OPSET = 18
INPUT, OUTPUTS = "image", ("logits", "masks", "ancestors")
METADATA = "sohes"  # metadata key of the decoding settings
SCENES = 2  # number of synthetic photos used to check an exported file

Runner = Callable[[Tensor], Sequence[Tensor]]


class SegmenterGraph(nn.Module):
    """The part of `SOHES` that is exported: from pixels to tensors, without decoding."""

    def __init__(self, model: SOHES, channels: str = "RGB"):
        """
        Args:
            model: in evaluation mode.
            channels: INPUT.FORMAT of the model; the graph takes RGB and flips it if needed.
        """
        super().__init__()
        self.model = model
        self.channels = channels

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map ``image`` (1, 3, H, W) to the outputs listed in the module's docstring, in that order."""
        model = self.model
        pixels = image if self.channels == "RGB" else image.flip(1)
        outputs = model.segment((pixels - model.pixel_mean) / model.pixel_std)
        tensors = outputs["pred_logits"], outputs["pred_masks"]
        if "pred_ancestors" not in outputs:
            return tensors
        probabilities = ancestor_logits(*outputs["pred_ancestors"]).sigmoid()
        others = 1 - torch.eye(probabilities.shape[-1], dtype=probabilities.dtype, device=probabilities.device)
        return (*tensors, probabilities * others)


def check_model(model: nn.Module, size: tuple[int, int]) -> SOHES:
    """Check that a model can be exported for images of a size, and return it.

    Raises:
        InputError: another architecture, a model in training mode or not on the CPU, or an unsupported size.
    """
    if not isinstance(model, SOHES):
        raise InputError(
            f"only the architecture SOHES can be exported, not {type(model).__name__}; sohes export turns a "
            "checkpoint with teacher and student into one"
        )
    if model.training or model.device.type != "cpu":
        raise InputError("the model must be in evaluation mode and on the CPU")
    stride = model.size_divisibility
    if any(side < stride or side % stride for side in size):
        raise InputError(f"height and width must be multiples of {stride}, got {size[0]} and {size[1]}")
    return model


def trace(graph: SegmenterGraph, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """Trace the graph for images of one size with ``torch.export``.

    Args:
        graph: its model must pass `check_model`.
        size: (H, W).
    """
    example = torch.zeros(1, 3, *size)
    # Non-strict tracing runs the model as normal Python, so torch's compiler need not support it.
    with torch.no_grad(), _traceable_sampling(graph):
        return torch.export.export(graph, (example,), strict=False)


@contextlib.contextmanager
def _traceable_sampling(model: nn.Module) -> Iterator[None]:
    """Switch deformable attention from its custom CPU function to operators that other runtimes support."""
    layers = [module for module in model.modules() if isinstance(module, MSDeformAttn)]
    before = [layer.sampling for layer in layers]
    try:
        for layer in layers:
            layer.sampling = "grid"
        yield
    finally:
        for layer, method in zip(layers, before):
            layer.sampling = method


def settings(graph: SegmenterGraph) -> str:
    """Return the settings for decoding outputs as json: the padding colour in RGB and fields of `EntityInference`."""
    inference = graph.model.inference
    mean = graph.model.pixel_mean.flatten().tolist()
    names = (
        "max_masks",
        "min_score",
        "calibration",
        "nms_threshold",
        "ancestor_threshold",
        "theta_cover",
        "theta_cover_alone",
        "max_child_area",
    )
    return json.dumps(
        {
            "pixel_mean": mean if graph.channels == "RGB" else mean[::-1],
            **{name: getattr(inference, name) for name in names},
        }
    )


def write(program: torch.export.ExportedProgram, path: str, metadata: str) -> None:
    """Write a program as .onnx or .pt2, depending on the suffix, with ``metadata`` under the key METADATA.

    Raises:
        InputError: torch's exporter cannot write it as ONNX.
    """
    if path.endswith(".pt2"):
        with atomic_writer(path) as file:
            torch.export.save(program, file, extra_files={METADATA: metadata})
        return
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS[: len(program.graph_signature.user_outputs)]),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"torch {torch.__version__} cannot write this model as ONNX: {error}") from error
    assert converted is not None  # since dynamo=True
    for node in converted.model.graph:
        node.metadata_props.clear()  # they contain stack traces with local paths
    converted.model.metadata_props[METADATA] = metadata
    write_bytes(path, converted.model_proto.SerializeToString())


def load_runner(path: str) -> Runner:
    """Load an exported file as a function of an image, on the CPU."""
    if path.endswith(".pt2"):
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(output) for output in session.run(None, {INPUT: image.numpy()})]


def example_images(size: tuple[int, int], photos: Sequence[np.ndarray] = ()) -> list[Tensor]:
    """Return images for checking an exported file: synthetic scenes, then photos.

    Args:
        size: (H, W).
        photos: (H, W, 3) uint8 RGB.

    Returns:
        Tensors (1, 3, H, W), float32 in 0..255.
    """
    scenes = [generate_scene(0, k, size)[0] for k in range(SCENES)]
    return [torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() for image in (*scenes, *photos)]


@torch.no_grad()
def largest_differences(expected: Runner, found: Runner, images: Sequence[Tensor]) -> dict[str, float]:
    """Largest absolute difference of each output over all images.

    It is infinite if an output is missing on one side, the shapes differ, or a value is NaN.
    """
    worst: dict[str, float] = {}
    for image in images:
        for name, wanted, got in itertools.zip_longest(OUTPUTS, expected(image), found(image)):
            if wanted is None and got is None:
                continue  # a model without ancestor head
            same_shape = wanted is not None and got is not None and wanted.shape == got.shape
            difference = (wanted - got).abs().max().item() if same_shape else math.inf
            worst[name] = max(worst.get(name, 0.0), math.inf if math.isnan(difference) else difference)
    return worst


def export_segmenter(
    model: nn.Module,
    paths: Sequence[str],
    size: tuple[int, int],
    channels: str = "RGB",
    photos: Sequence[np.ndarray] = (),
    tolerance: float = 1e-3,
) -> dict[str, dict[str, float]]:
    """Export a model to files; a file is kept only if its outputs match the model's.

    Args:
        model: a `SOHES` on the CPU, in evaluation mode.
        paths: output files; the suffix, .onnx or .pt2, selects the format. Folders are created.
        size: (H, W), the fixed input size of the files.
        channels: INPUT.FORMAT of the model.
        photos: (H, W, 3) uint8 RGB, used for the check in addition to synthetic scenes.
        tolerance: largest allowed absolute difference of any output.

    Returns:
        `largest_differences` of each path.

    Raises:
        InputError: the model, the size or a path cannot be used.
        SOHESError: outputs of a file differ by more than ``tolerance``; this file and later ones are not kept.
    """
    check_paths(paths)
    graph = SegmenterGraph(check_model(model, size), channels).eval()
    images = example_images(size, photos)
    program = trace(graph, size)
    results = {}
    for path in paths:
        folder = os.path.dirname(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        # in the same folder, so that the last step is a rename
        with output_errors(path), tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
            unchecked = os.path.join(temporary, os.path.basename(path))
            write(program, unchecked, settings(graph))
            differences = largest_differences(graph, load_runner(unchecked), images)
            if not max(differences.values()) <= tolerance:
                raise SOHESError(
                    f"{path}: not kept, since it differs from the model by up to {describe(differences)}, more than "
                    f"{tolerance:g}"
                )
            os.replace(unchecked, path)
            sync_folder(folder)
        results[path] = differences
    return results


def check_paths(paths: Sequence[str]) -> None:
    """Check that files of these names can be written and verified in this environment.

    Raises:
        InputError: a suffix that is not in SUFFIXES, or a missing package.
    """
    for path in paths:
        if not path.endswith(SUFFIXES):
            raise InputError(f"{path!r}: the name must end in {' or '.join(SUFFIXES)}")
        needed = ("onnx", "onnxscript", "onnxruntime") if path.endswith(".onnx") else ()
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"{path!r}: writing and checking ONNX files needs {', '.join(missing)}; "
                "pip install 'sohes_d2[onnx]', or write a .pt2 file"
            )


def describe(differences: dict[str, float]) -> str:
    """Format differences, for example as "1.2e-06 (logits), 3.0e-05 (masks)"."""
    return ", ".join(f"{value:.1e} ({name})" for name, value in differences.items())
