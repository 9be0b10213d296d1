"""The border network, its files, and its use in phase 1."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sohes_d2  # noqa: F401
from sohes_d2.errors import WeightsError
from sohes_d2.exploration.border_network import BorderNetwork, LearnedBorders
from sohes_d2.exploration.features import ColorTextureExtractor
from sohes_d2.exploration.labeler import PseudoLabeler
from sohes_d2.exploration.regions import STRENGTH_UNIT, border_strength


def network(channels=(4, 6), seed=0):
    torch.manual_seed(seed)
    return BorderNetwork(channels).eval()


def test_every_pixel_of_any_size_has_a_value():
    model = network((4, 6, 8))
    with torch.no_grad():
        for size in ((1, 1), (2, 3), (7, 5), (32, 48)):
            assert model(torch.zeros(2, 3, *size)).shape == (2, *size)
    assert len(model.channels) == 3 and model.encoder[0][0].weight.shape == (4, 12, 3, 3)


def test_values_follow_the_photo_pixel_by_pixel():
    # A shift by one block of the coarsest stage shifts the output, except near the image border.
    model = network()
    image = torch.rand(1, 3, 96, 96) * 255
    with torch.no_grad():
        whole, shifted = model(image), model(image[:, :, 8:, 8:])
    torch.testing.assert_close(whole[:, 40:56, 40:56], shifted[:, 32:48, 32:48])


@pytest.mark.parametrize("channels", [(), (4, 0)])
def test_channels_are_checked(channels):
    with pytest.raises(ValueError, match="CHANNELS"):
        BorderNetwork(channels)


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_of_any_width_are_read_and_the_teacher_is_preferred(tmp_path, wrapped):
    teacher, student = network(seed=1), network(seed=2)
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    if wrapped:
        state = {f"teacher.{k}": v for k, v in teacher.state_dict().items()}
        state |= {f"student.{k}": v for k, v in student.state_dict().items()}
        torch.save({"model": state, "iteration": 3}, tmp_path / "model.pth")
        borders = LearnedBorders(str(tmp_path / "model.pth"))
    else:
        save_file(teacher.state_dict(), tmp_path / "model.safetensors")
        borders = LearnedBorders(str(tmp_path / "model.safetensors"))
    with torch.no_grad():
        expected = torch.sigmoid(teacher(torch.from_numpy(image).permute(2, 0, 1)[None]))[0].mul(255).round().byte()
    assert np.array_equal(borders([image])[0], expected.numpy())
    assert borders.describe()["weights"] == f"file:{'model.pth' if wrapped else 'model.safetensors'}"


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"fc.weight": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    state = network().state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("head")}, tmp_path / "part.safetensors")
    for name, words in (("other", "do not hold a border network"), ("part", "lack 2 tensors")):
        with pytest.raises(WeightsError, match=words):
            LearnedBorders(str(tmp_path / f"{name}.safetensors"))


class Halves:
    """A border network that predicts strong borders in the left half and none in the right."""

    def __call__(self, images):
        answer = np.zeros(images[0].shape[:2], np.uint8)
        answer[:, : answer.shape[1] // 2] = 255
        return [answer] * len(images)

    def describe(self):
        return {"weights": "halves"}


def test_phase_one_mixes_the_learned_strength_with_the_gradient():
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    learner = PseudoLabeler(ColorTextureExtractor(), borders=Halves(), learned_share=0.25)
    gradient = border_strength(image, learner.looks.border_scales, learner.looks.border_half)
    mixed = learner._strength(image, learner.evidence([image])[0].borders)
    assert np.array_equal(mixed[:, 15:], np.rint(0.75 * gradient[:, 15:]))
    assert np.array_equal(mixed[:, :15], np.rint(0.75 * gradient[:, :15] + 0.25 * STRENGTH_UNIT))
    assert learner.describe()["borders"] == {"weights": "halves", "share": 0.25}
    assert "borders" not in PseudoLabeler(ColorTextureExtractor()).describe()
    with pytest.raises(ValueError, match="LEARNED_SHARE"):
        PseudoLabeler(ColorTextureExtractor(), learned_share=1.5)


def test_phase_one_merges_across_weak_learned_borders_last():
    # Two areas of the same colour, separated by the network alone.
    class Line:
        def __call__(self, images):
            answer = np.zeros(images[0].shape[:2], np.uint8)
            answer[:, 29:31] = 255
            return [answer] * len(images)

        def describe(self):
            return {}

    rng = np.random.default_rng(2)
    image = np.clip(128 + rng.integers(-6, 7, (40, 60, 3)), 0, 255).astype(np.uint8)
    half = np.zeros((40, 60), bool)
    half[:, :30] = True

    def best_iou(borders):
        forest = PseudoLabeler(ColorTextureExtractor(), borders=borders).generate(image)
        masks = forest.to_numpy()
        return max((mask & half).sum() / (mask | half).sum() for mask in masks)

    assert best_iou(Line()) > 0.9 > best_iou(None)
