"""Crops and flips: which windows come out, how often, and what is refused."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, kstest
from torch.nn import functional as F

from famus_hf.data.inputs.augmentation import Augmentation, make_generator, random_boxes

CROPS = [
    Augmentation("pad-crop", padding=2),
    Augmentation("pad-crop", padding=2, padding_mode="reflect"),
    Augmentation("random-crop", size=6),
    Augmentation("resized-crop", size=6),
]


def distinct_images(n, c, height, width):
    """No two pixels alike, and none 0."""
    return 1 + torch.arange(n * c * height * width, dtype=torch.float32).view(n, c, height, width)


def all_windows(image, height, width, flip=True):
    """Every window of (c, H, W), and then its mirror image: (windows, c, height, width)."""
    rows, columns = range(image.shape[1] - height + 1), range(image.shape[2] - width + 1)
    windows = [image[:, y : y + height, x : x + width] for y, x in product(rows, columns)]
    return torch.stack([turned for w in windows for turned in ((w, w.flip(-1)) if flip else (w,))])


def which_window(outputs, windows):
    """The number of the one window that each output equals."""
    matches = (outputs[:, None] == windows).flatten(2).all(2)
    assert (matches.sum(1) == 1).all(), "every output must be exactly one of the windows"
    return matches.int().argmax(1).numpy()


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_crop_gives_each_window_of_the_padded_image_and_its_mirror_equally_often(mode):
    image = distinct_images(1, 2, 5, 6)
    windows = all_windows(F.pad(image, (2, 2, 2, 2), mode=mode)[0], 5, 6)
    assert len(windows) == 2 * (2 * 2 + 1) ** 2
    augmentation = Augmentation("pad-crop", padding=2, padding_mode={"constant": "zero"}.get(mode, mode))
    outputs = augmentation(image.expand(5000, 2, 5, 6), make_generator(0))
    assert chisquare(np.bincount(which_window(outputs, windows), minlength=len(windows))).pvalue > 0.001


def test_random_crop_gives_each_window_and_its_mirror_equally_often():
    image = distinct_images(1, 2, 5, 7)
    windows = all_windows(image[0], 3, 3)
    outputs = Augmentation("random-crop", size=3)(image.expand(3000, 2, 5, 7), make_generator(0))
    assert chisquare(np.bincount(which_window(outputs, windows), minlength=len(windows))).pvalue > 0.001


def test_each_image_of_a_batch_gets_its_own_crop_and_draws_independently():
    images = distinct_images(40, 3, 4, 4)
    outputs = Augmentation("pad-crop", padding=1)(images, make_generator(0))
    for image, output in zip(F.pad(images, (1, 1, 1, 1)), outputs, strict=True):
        which_window(output[None], all_windows(image, 4, 4))
    image = distinct_images(1, 1, 4, 4)
    windows = all_windows(F.pad(image, (1, 1, 1, 1))[0], 4, 4)
    batch = Augmentation("pad-crop", padding=1)(image.expand(8000, 1, 4, 4), make_generator(1))
    first, second = which_window(batch, windows).reshape(-1, 2).T
    assert chisquare(np.bincount(first * len(windows) + second, minlength=len(windows) ** 2)).pvalue > 0.001


def test_pad_crop_may_have_an_output_size_of_its_own():
    image = distinct_images(1, 1, 5, 6)
    outputs = Augmentation("pad-crop", size=7, padding=1)(image.expand(50, 1, 5, 6), make_generator(0))
    assert outputs.shape == (50, 1, 7, 7)
    windows = all_windows(F.pad(image, (1, 1, 1, 1))[0], 7, 7)
    assert len(windows) == 4 and set(which_window(outputs, windows)) == set(range(4)), "each window, and no other"


def test_without_flip_no_image_is_mirrored():
    image = distinct_images(1, 1, 5, 5)
    outputs = Augmentation("random-crop", size=4, flip=False)(image.expand(100, 1, 5, 5), make_generator(0))
    windows = all_windows(image[0], 4, 4, flip=False)
    assert len(windows) == 4 and set(which_window(outputs, windows)) == set(range(4)), "each window, and no other"


def test_padding_has_the_fill_value_of_each_channel():
    images = distinct_images(200, 2, 4, 4)
    outputs = Augmentation("pad-crop", padding=2, fill=(-0.25, -0.5))(images, make_generator(0))
    for channel, value in ((0, -0.25), (1, -0.5)):
        padded = outputs[:, channel][outputs[:, channel] < 0]
        assert len(padded) and (padded == value).all()
    everywhere = Augmentation("pad-crop", padding=2, fill=-3)(images, make_generator(0))
    torch.testing.assert_close(everywhere, torch.where(outputs < 0, -3.0, outputs), rtol=0, atol=0)


def test_resized_crop_draws_the_area_uniformly_and_the_shape_log_uniformly():
    """Kolmogorov-Smirnov, level 0.001, on images so large that whole pixels don't matter and boxes that all fit."""
    height, width = 600, 650
    boxes = random_boxes((2000, 3, height, width), (0.1, 0.5), (3 / 4, 4 / 3), make_generator(0))
    heights, widths = boxes[:, 2:].numpy().T
    assert kstest((heights * widths / (height * width) - 0.1) / 0.4, "uniform").pvalue > 0.001
    assert kstest(np.log(widths / heights) / math.log(16 / 9) + 0.5, "uniform").pvalue > 0.001


def test_resized_crop_puts_a_box_at_each_place_equally_often():
    tops, lefts, heights, widths = random_boxes((3000, 3, 4, 4), (0.25, 0.25), (1.0, 1.0), make_generator(0)).T
    assert (heights == 2).all() and (widths == 2).all()
    assert chisquare(torch.bincount(3 * tops + lefts, minlength=9)).pvalue > 0.001


def test_resized_crop_takes_the_first_of_ten_boxes_that_fits():
    """Areas against the definition draw by draw, where many boxes don't fit (chi-square, level 0.001)."""
    scale, ratio, side, n = (0.5, 1.0), (0.5, 2.0), 64, 2000
    draw = np.random.default_rng(0)

    def reference():
        for _ in range(10):
            area, shape = side**2 * draw.uniform(*scale), math.exp(draw.uniform(*map(math.log, ratio)))
            width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < width <= side and 0 < height <= side:
                return height * width
        return side * side

    areas = random_boxes((n, 3, side, side), scale, ratio, make_generator(0))[:, 2:].prod(1).numpy()
    edges = [0, *(side**2 * np.arange(0.55, 1.0, 0.05)), math.inf]
    expected = np.histogram([reference() for _ in range(20 * n)], edges)[0] / 20
    assert chisquare(np.histogram(areas, edges)[0], expected).pvalue > 0.001


@pytest.mark.parametrize(
    "height, width, ratio, box",
    [
        (8, 64, (3 / 4, 4 / 3), [0, 26, 8, 11]),  # too wide
        (64, 9, (3 / 4, 4 / 3), [26, 0, 12, 9]),  # too high
        (3200, 4000, (1e-9, 1e9), [0, 0, 3200, 4000]),  # neither: all of it
    ],
)
def test_resized_crop_falls_back_on_a_central_box(height, width, ratio, box):
    assert random_boxes((4, 3, height, width), (1.0, 1.0), ratio, make_generator(0)).tolist() == [box] * 4


def test_resized_crop_is_antialiased_bilinear_resampling_of_the_box():
    size, scale, n = 12, (0.05, 1.0), 40
    images = torch.rand(n, 3, 40, 30, generator=make_generator(3))
    boxes = random_boxes(images.shape, scale, (3 / 4, 4 / 3), make_generator(0)).tolist()
    assert {height > size for _, _, height, _ in boxes} == {True, False}, "both shrunk and enlarged boxes"
    outputs = Augmentation("resized-crop", size=size, scale=scale, flip=False)(images, make_generator(0))
    for image, output, (top, left, height, width) in zip(images, outputs, boxes, strict=True):
        box = image[:, top : top + height, left : left + width]
        expected = F.interpolate(box[None], size=(size, size), antialias=True, mode="bilinear")[0]
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
        pillow = [Image.fromarray(channel.numpy()).resize((size, size), Image.Resampling.BILINEAR) for channel in box]
        torch.testing.assert_close(output, torch.from_numpy(np.stack(pillow)), rtol=0, atol=1e-5)


def test_resized_crop_flips_half_of_the_images():
    images = torch.rand(500, 1, 10, 10, generator=make_generator(1))
    straight = Augmentation("resized-crop", size=4, flip=False)(images, make_generator(0))
    outputs = Augmentation("resized-crop", size=4)(images, make_generator(0))
    flips = (outputs == straight.flip(-1)).flatten(1).all(1)
    assert torch.equal(outputs[~flips], straight[~flips])
    assert chisquare(torch.bincount(flips.long())).pvalue > 0.001


def test_resized_crop_of_the_whole_image_to_its_own_size_changes_nothing():
    images = torch.randn(5, 3, 16, 16)
    whole = Augmentation("resized-crop", size=16, scale=(1, 1), ratio=(1, 1), flip=False)
    torch.testing.assert_close(whole(images, make_generator(0)), images, rtol=0, atol=1e-6)


def test_none_returns_the_images_themselves():
    images = torch.randn(2, 3, 4, 4)
    assert Augmentation("none")(images, make_generator(0)) is images


@pytest.mark.parametrize("augmentation", CROPS, ids=lambda a: f"{a.name}-{a.padding_mode}")
class TestEveryAugmentation:
    def test_one_seed_gives_one_result_and_other_streams_others(self, augmentation):
        images = distinct_images(50, 3, 8, 8)
        first, again = (augmentation(images, make_generator(1, 2, 3)) for _ in range(2))
        assert torch.equal(first, again)
        for other in ((1, 2, 4), (2, 2, 3), (1, 3, 2), (1, 2, 3, 0)):
            assert not torch.equal(first, augmentation(images, make_generator(*other)))

    def test_successive_calls_draw_anew(self, augmentation):
        images, generator = distinct_images(50, 3, 8, 8), make_generator(0)
        assert not torch.equal(augmentation(images, generator), augmentation(images, generator))

    def test_input_is_not_modified_and_no_gradient_flows(self, augmentation):
        images = distinct_images(20, 3, 8, 8).requires_grad_()
        before = images.detach().clone()
        outputs = augmentation(images, make_generator(0))
        outputs.zero_()
        assert torch.equal(images, before) and not outputs.requires_grad

    def test_bfloat16_images_give_bfloat16_crops_of_the_same_windows(self, augmentation):
        images = torch.rand(20, 3, 8, 8, generator=make_generator(0)).bfloat16()
        outputs = augmentation(images, make_generator(1))
        assert outputs.dtype == torch.bfloat16
        torch.testing.assert_close(outputs, augmentation(images.float(), make_generator(1)).bfloat16())

    def test_nothing_is_read_back_from_the_device_of_the_images(self, augmentation):
        outputs = augmentation(torch.empty(5, 3, 8, 8, device="meta"), make_generator(0))  # has no values to read
        assert outputs.device.type == "meta" and outputs.shape[:2] == (5, 3)

    def test_global_random_state_is_left_alone(self, augmentation):
        before = torch.get_rng_state()
        augmentation(distinct_images(5, 3, 8, 8), make_generator(0))
        assert torch.equal(torch.get_rng_state(), before)


def test_generators_of_different_numbers_differ():
    lists = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (2**32,), (1, 0, 0), *product(range(3), range(3), range(5))]
    draws = {tuple(torch.rand(4, generator=make_generator(*numbers)).tolist()) for numbers in lists}
    assert len(draws) == len(set(lists))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("cutout",), "'cutout' is unknown: choose one of none, pad-crop"),
        (("random-crop",), "random-crop has size=None: give"),
        (("resized-crop",), "resized-crop has size=None: give"),
        (("random-crop", 0), "size=0 must be at least 1"),
        (("pad-crop", None, -1), "padding=-1 must not be negative"),
        (("pad-crop", None, 4, "edge"), "padding_mode='edge' is unknown: choose one of zero, reflect"),
        (("resized-crop", 8, 4, "zero", True, (0.0, 1.0)), "scale=.* must be two shares"),
        (("resized-crop", 8, 4, "zero", True, (0.5, 0.1)), "scale=.* must be two shares"),
        (("resized-crop", 8, 4, "zero", True, (0.5, 1.1)), "scale=.* must be two shares"),
        (("resized-crop", 8, 4, "zero", True, (0.5, 1.0), (2.0, 1.0)), "ratio=.* must be two"),
        (("resized-crop", 8, 4, "zero", True, (0.5, 1.0), (0.0, 1.0)), "ratio=.* must be two"),
    ],
)
def test_impossible_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(*arguments)


@pytest.mark.parametrize(
    "augmentation, shape, words",
    [
        (Augmentation("none"), (3, 8, 8), r"images of shape \(3, 8, 8\): give a batch"),
        (Augmentation("random-crop", size=9), (2, 3, 12, 8), "9×9 pixels doesn't fit in images of 12×8"),
        (Augmentation("pad-crop", padding_mode="reflect"), (2, 3, 4, 9), "padding=4 reflects images of 4×9"),
        (Augmentation("pad-crop", fill=(0.0, 1.0)), (2, 3, 8, 8), "fill has 2 values for images of 3 channels"),
    ],
)
def test_images_that_do_not_fit_the_augmentation_are_refused(augmentation, shape, words):
    with pytest.raises(ValueError, match=words):
        augmentation(torch.zeros(shape), make_generator(0))


def test_impossible_seeds_are_refused():
    with pytest.raises(ValueError, match="each must be an integer from 0"):
        make_generator(0, -1)
