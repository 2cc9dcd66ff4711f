"""Learning to find cells: crops keep boxes and masks together, runs repeat and resume, and learning helps."""

import numpy as np
import pytest
import torch

from hemomil.detect import Detector, Example, TrainSettings, evaluate_detector, train_detector
from hemomil.detect.augment import random_crop
from hemomil.detect.rounding import uses_bfloat16
from hemomil.detect.train import learning_rate
from hemomil.errors import ModelError, SettingsError
from hemomil.streams import stream
from test_detect import discs

TINY = TrainSettings(steps=2, batch=1, crop=96, every=1, bfloat16=False, zoom=(0.9, 1.1))


def weights(detector):
    tensors = detector.net.state_dict().values()
    return torch.cat([value.flatten() for value in tensors if value.is_floating_point()])


@pytest.mark.parametrize("seed", range(6))
def test_boxes_of_a_crop_enclose_its_masks(seed):
    settings = TrainSettings(crop=128)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        crop = random_crop(discs(seed, 220, 260, 45.0, 14), settings, stream(seed, "crop"))
    assert crop.image.shape == (3, 128, 128)
    assert 0 <= crop.image.min() <= crop.image.max() <= 1
    assert len(crop.target["boxes"]) == len(crop.target["masks"]) == len(crop.target["labels"])
    for (x0, y0, x1, y1), mask in zip(crop.target["boxes"].int().tolist(), crop.target["masks"], strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any()
        assert mask[:, x1 - 1].any()


def test_cells_of_a_crop_are_where_the_picture_is_dark():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        crop = random_crop(discs(1, 220, 260, 45.0, 14), TrainSettings(crop=160), stream(0, "crop"))
    green = crop.image[1]
    cell = crop.target["masks"].bool().any(dim=0)
    assert green[cell].mean() < green[~cell & (green > 0.05)].mean() - 0.1


def test_a_crop_brings_cells_of_any_size_near_the_nominal_one():
    settings = TrainSettings(zoom=(0.99, 1.01))
    for diameter in (20.0, 80.0):
        side = round(6 * diameter)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            crop = random_crop(discs(2, side, side, diameter, 20), settings, stream(1, "crop"))
        boxes = crop.target["boxes"]
        whole = ((boxes > 1) & (boxes < settings.crop - 1)).all(dim=1)
        sides = (boxes[whole, 2:] - boxes[whole, :2]).mean()
        assert float(sides) == pytest.approx(settings.nominal, rel=0.15)


def test_boxes_without_masks_move_as_those_with_masks():
    example = discs(3, 200, 200, 40.0, 8)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        masked = random_crop(example, TINY, stream(2, "crop")).target["boxes"]
        torch.manual_seed(1)
        boxed = random_crop(Example(image=example.image, boxes=example.boxes), TINY, stream(2, "crop")).target
    assert "masks" not in boxed
    assert len(boxed["boxes"]) == len(masked)
    np.testing.assert_allclose(
        boxed["boxes"], masked, atol=6
    )  # masks give the tighter box where a cell is cut


def test_the_learning_rate_rises_then_falls_to_nothing():
    settings = TrainSettings(steps=100)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert max(rates) == pytest.approx(settings.learning_rate)
    assert rates[0] < rates[4]
    assert rates[-1] < 0.01 * max(rates)


def test_a_training_run_repeats_and_resumes_to_the_same_weights(tmp_path):
    examples = [discs(seed) for seed in range(3)]
    unbroken = train_detector(examples, TINY)
    state = tmp_path / "state.safetensors"

    def stop(step, numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detector(examples, TINY, checkpoint=state, progress=stop)
    resumed = train_detector(examples, TINY, checkpoint=state)
    assert torch.equal(weights(resumed), weights(unbroken))
    assert resumed.fingerprint == unbroken.fingerprint
    state.write_text("not a checkpoint")
    with pytest.raises(ModelError, match=r"state\.safetensors"):
        train_detector(examples, TINY, checkpoint=state)


def test_examples_without_masks_leave_the_mask_head_alone():
    start = Detector.untrained()
    boxed = [Example(image=discs(0).image, boxes=discs(0).boxes)]
    settings = TINY.model_copy(update={"weight_decay": 0.0})
    seen = []
    trained = train_detector(boxed, settings, start=start, progress=lambda step, told: seen.append(told))
    mask_head = "roi_heads.mask_head.0.0.weight"
    assert torch.equal(trained.net.state_dict()[mask_head], start.net.state_dict()[mask_head])
    assert not torch.equal(weights(trained), weights(start))
    assert all("loss_mask" not in told for told in seen)


def test_training_leaves_the_first_detector_and_torchs_generator_alone():
    start = Detector.untrained()
    before, state = start.fingerprint, torch.get_rng_state()
    old = weights(start).clone()
    train_detector([discs(0)], TINY, start=start)
    assert torch.equal(weights(start), old)
    assert start.fingerprint == before
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_to_learn_from_is_an_error():
    empty = Example(image=discs(0).image, boxes=np.zeros((0, 4), np.float32))
    with pytest.raises(SettingsError, match="nothing to learn"):
        train_detector([empty], TINY)


@pytest.mark.slow
def test_discs_are_learned_from_nothing():
    examples = [discs(seed, 200, 240, 40.0, 12) for seed in range(24)]
    settings = TrainSettings(steps=150, batch=3, crop=160, bfloat16=False)
    losses = []
    detector = train_detector(examples, settings, progress=lambda step, told: losses.append(told["loss"]))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    scores = evaluate_detector(detector, [discs(100 + seed, 200, 240, 40.0, 12) for seed in range(4)])
    assert scores["box_ap50"] > 0.9
    assert scores["mask_ap50"] > 0.9


def test_the_result_lies_between_what_was_learned_and_what_was_known():
    examples, start = [discs(0)], Detector.untrained(seed=3)
    learned = train_detector(examples, TINY, start=start)
    mean = train_detector(examples, TINY.model_copy(update={"average": 0.75}), start=start)
    expected = torch.lerp(weights(learned), weights(start), 0.75)
    torch.testing.assert_close(weights(mean), expected, rtol=2e-3, atol=1e-5)
    assert not torch.equal(weights(learned), weights(start))


def test_there_must_be_something_to_average_with():
    with pytest.raises(SettingsError, match="no first weights"):
        train_detector([discs(0)], TINY.model_copy(update={"average": 0.5}))


@pytest.mark.parametrize("capability", ["amx_bf16", "avx512_bf16", None])
def test_bfloat16_is_left_alone_on_a_processor_without_instructions_for_it(capability, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, capability: True})
    cpu = torch.device("cpu")
    assert uses_bfloat16(cpu, TrainSettings().bfloat16) is (capability is not None)
    assert uses_bfloat16(cpu, TrainSettings(bfloat16=True).bfloat16)
    assert not uses_bfloat16(cpu, TrainSettings(bfloat16=False).bfloat16)
