"""The training benchmark: models, counts and output, and the comparison with another head."""

import itertools
from types import SimpleNamespace

import part_meter
import pytest
import torch
from benchmarks import benchmark_training as benchmark
from part_meter import PartMeter

from sohes_d2.config.load import load_config
from sohes_d2.modeling.criterion import SetCriterion
from sohes_d2.modeling.matcher import HungarianMatcher
from sohes_d2.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from sohes_d2.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder

TINY = [
    *("INPUT.IMAGE_SIZE", "64", "MODEL.VIT.OPTIONS.depth", "2", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "12", "MODEL.MASK_FORMER.DEC_LAYERS", "3"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64"),
]
RUN = ["--batch-size", "2", "--iterations", "1", *TINY]


@pytest.fixture
def tiny():
    return load_config(benchmark.DEFAULT_CONFIG, TINY)


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by one second at every reading."""
    ticks = itertools.count()
    monkeypatch.setattr(part_meter, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Stub of the official code: our modules under its names, with its constructors; ``scale`` scales mask features."""
    settings = SimpleNamespace(scale=1.0)

    class PixelDecoder(MSDeformAttnPixelDecoder):
        def __init__(self, input_shape, *, transformer_dropout, **others):
            assert transformer_dropout == 0
            super().__init__(input_shape, **others)

        def forward_features(self, features):
            mask_features, coarsest, pyramid = super().forward_features(features)
            return mask_features * settings.scale, coarsest, pyramid

    def criterion(num_classes, matcher, weight_dict, eos_coef, losses, **points):
        assert losses == ["labels", "masks"]
        return SetCriterion(
            num_classes=num_classes, matcher=matcher, weight_dict=weight_dict, eos_coef=eos_coef, **points
        )

    modules = {
        "pixel_decoder.msdeformattn": SimpleNamespace(MSDeformAttnPixelDecoder=PixelDecoder),
        "transformer_decoder.mask2former_transformer_decoder": SimpleNamespace(
            MultiScaleMaskedTransformerDecoder=MultiScaleMaskedTransformerDecoder
        ),
        "criterion": SimpleNamespace(SetCriterion=criterion),
        "matcher": SimpleNamespace(HungarianMatcher=HungarianMatcher),
    }
    monkeypatch.setattr(benchmark, "import_official", lambda folder: modules.__getitem__)
    return settings


def test_the_batch_is_scenes_with_true_labels():
    batch = benchmark.make_batch(2, 64)
    assert [x["image"].shape for x in batch] == [(3, 64, 64)] * 2
    for instances in (x["instances"] for x in batch):
        masks, ancestors = instances.gt_masks.tensor.flatten(1), instances.gt_ancestors.tensor
        inside = (masks[None] & ~masks[:, None]).sum(2) == 0  # [i, j]: i covers j
        assert len(instances) and bool(inside[ancestors].all())
    assert benchmark.make_batch(2, 64)[1]["image"].equal(batch[1]["image"])


def test_gradients_equal_those_of_a_whole_iteration(tiny):
    training = benchmark.Training(tiny, 2)
    model = training.model
    training.optimizer.step = lambda: None
    training.optimizer.zero_grad = lambda: None
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    training.iterate()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert sum(gradient is not None for gradient in found.values()) > 0.95 * len(found)
    model.zero_grad()
    features = training.features()
    torch.manual_seed(0)
    sum(model.losses(model.sem_seg_head(features), training.targets).values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-6), name
        assert torch.equal(parameter, before[name])


def test_weights_are_unchanged(tiny):
    training = benchmark.Training(tiny, 1)
    before = [parameter.clone() for parameter in training.model.parameters()]
    training.iterate()
    assert all(map(torch.equal, before, training.model.parameters()))


def test_time_of_every_part(tiny, clock):
    training = benchmark.Training(tiny, 2)
    benchmark.measure_training(training, iterations=2)
    meter = training.meter
    assert set(meter.parts) == set(benchmark.OUR_PARTS)
    # one reading at the start and one at the end; three outputs are matched within the losses, with two readings each
    assert [meter.seconds(part) for part in benchmark.OUR_PARTS] == [1, 1, 1, 3, 4, 1, 1, 1, 1]
    assert meter.seconds(*benchmark.HEAD_PARTS) == 11
    assert set(meter.peaks) == set(benchmark.OUR_PARTS) - {benchmark.MATCHING}
    lines = benchmark.table(meter).splitlines()
    assert lines[1].split()[:3] == ["backbone", "1000.0", "7.1%"]
    assert lines[-1].split()[:3] == ["iteration", "14000.0", "100.0%"]


def test_medians_and_sums_over_rounds(clock):
    meter = PartMeter("cpu")
    for looks in (1, 5, 2):
        with meter.round():
            with meter.part("a"):
                for _ in range(looks):
                    meter.now()
            with meter.part("b"):
                meter.add("a", 10)
    assert (meter.seconds("a"), meter.seconds("b"), meter.seconds("a", "b")) == (13, 1, 14)
    with meter.round(memory=True), meter.part("a"):
        block = torch.ones(64, 1024, 1024, dtype=torch.uint8)
    assert meter.seconds("a") == 13
    assert not meter.peaks["a"] < 0.9 * block.numel()  # NaN if the system does not report it


def test_an_equal_head_is_reported_as_equal(official, capsys):
    assert benchmark.main([*RUN, "--official", "anywhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 scenes of 64 x 64 pixels" in lines[0] and "12 queries; cpu" in lines[0]
    assert [line[:40].strip() for line in lines if line[:40].strip() in benchmark.HEAD_PARTS] == [
        *benchmark.HEAD_PARTS,
        *benchmark.HEAD_PARTS,
    ]
    assert lines[-2] == (
        "largest differences: pred_logits 0.0e+00, pred_masks 0.0e+00, losses 0.0e+00, gradients 0.0e+00"
    )
    assert lines[-1] == "equal True"


def test_another_head_is_reported_as_different(official, capsys):
    official.scale = 1.2
    assert benchmark.main([*RUN, "--official", "anywhere"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "equal False"
    assert 0.1 < float(lines[-2].split("pred_masks ")[1].split(",")[0]) < 0.3


def test_ours_alone_has_the_ancestor_head(capsys, monkeypatch):
    built = []
    original = benchmark.Training.iterate
    monkeypatch.setattr(
        benchmark.Training, "iterate", lambda self, *a, **k: built.append(self) or original(self, *a, **k)
    )
    assert benchmark.main(RUN) == 0
    assert built[0].model.sem_seg_head.predictor.ancestor_head is not None
    assert capsys.readouterr().out.splitlines()[-1].startswith("iterations/s ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--official", "none"], "'none' is not a checkout of facebookresearch/Mask2Former"),
        (["--official", "none", "SOLVER.AMP.ENABLED", "True"], "set SOLVER.AMP.ENABLED False"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "only SOHES can be measured"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
    ],
)
def test_errors_are_reported_in_one_line(arguments, message, capsys):
    assert benchmark.main([*arguments[:2], *TINY, *arguments[2:]] if arguments[0] == "--official" else arguments) == 2
    assert message in capsys.readouterr().err
