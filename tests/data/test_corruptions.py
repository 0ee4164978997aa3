from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from diffusion_classifier.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupted
from diffusion_classifier.data.fashion import load_sample
from diffusion_classifier.data.labelled import LabelledSource
from diffusion_classifier.errors import InputError

PHOTOGRAPHS = [sample.image for sample in load_sample()[:40]]


def pixels(image):
    return np.asarray(image.convert("RGB"), float)


def distance(a, b):
    return float(np.abs(pixels(a) - pixels(b)).mean())


def colours(size=24, seed=0):
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (size // 4, size // 4, 3), np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_farther_away(name):
    means = [
        np.mean([distance(image, Corruption(name, s)(image, str(i))) for i, image in enumerate(PHOTOGRAPHS)])
        for s in range(1, SEVERITIES + 1)
    ]
    assert means[0] > 0
    assert all(a < b for a, b in pairwise(means))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_at_every_call_and_another_for_another_image(name):
    image, shift = colours(), Corruption(name, 4)
    first = shift(image, "a")
    assert first.mode == "RGB"
    assert first.size == image.size
    assert np.array_equal(pixels(first), pixels(shift(image, "a")))
    by_chance = {"noise", "motion-blur", "occlusion", "rotation", "shear", "background"}
    others = [distance(first, shift(image, str(k))) for k in range(8)]
    assert (max(others) > 0) == any(word in name for word in by_chance)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(CORRUPTIONS)), st.integers(1, 5), st.integers(1, 30), st.integers(1, 30))
def test_images_of_any_shape(name, severity, width, height):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    assert Corruption(name, severity)(image, "").size == (width, height)


def test_grey_stays_grey():
    for name in CORRUPTIONS:
        changed = pixels(Corruption(name, 3)(PHOTOGRAPHS[0], ""))
        assert np.abs(changed - changed[..., :1]).max() <= (3 if name == "jpeg" else 0)


def test_what_is_known_in_closed_form():
    image = colours()
    x = pixels(image)
    assert np.array_equal(pixels(Corruption("inversion", 5)(image, "")), pixels(ImageOps.invert(image)))
    assert np.allclose(pixels(Corruption("brightness", 2)(image, "")), np.minimum(x + 51, 255), atol=1)
    mean = x.mean((0, 1))
    assert np.allclose(pixels(Corruption("contrast", 2)(image, "")), mean + (x - mean) / 2, atol=1)
    noisy = np.stack(
        [pixels(Corruption("gaussian-noise", 3)(Image.new("L", (64, 64), 128), str(i))) for i in range(20)]
    )
    assert noisy.mean() == pytest.approx(128, abs=1)
    assert noisy.std() == pytest.approx(0.15 * 255, rel=0.03)
    grains = pixels(Corruption("impulse-noise", 4)(Image.new("L", (300, 300), 128), ""))
    assert (grains == 0).mean() == pytest.approx(0.06, abs=0.005)
    assert (grains == 255).mean() == pytest.approx(0.06, abs=0.005)
    square = pixels(Corruption("occlusion", 3)(Image.new("L", (50, 50), 255), ""))
    assert (square == 128).all(-1).sum() == 20 * 20
    dot = Image.new("L", (61, 61))
    dot.putpixel((50, 30), 255)  # to the right of the middle
    dot = dot.resize((61, 61))
    turned = pixels(Corruption("rotation", 3)(dot, ""))[..., 0]
    y, x = np.unravel_index(turned.argmax(), turned.shape)
    assert np.hypot(y - 30, x - 30) == pytest.approx(20, abs=1)
    assert abs(np.degrees(np.arctan2(y - 30, x - 30))) == pytest.approx(30, abs=3)


def test_a_source_under_shift():
    def read(i):
        return b"no image" if i == 1 else colours(seed=i)

    source = LabelledSource("photos", ("a", "b"), (0, 1, 0), ("x", "y", "z"), read)
    changed = corrupted(source, Corruption.parse("gaussian-noise:2"))
    assert (changed.name, changed.shift) == ("photos, gaussian-noise:2", "gaussian-noise:2")
    assert changed.fingerprint() != source.fingerprint()
    assert changed.read(1) == b"no image"
    assert np.array_equal(pixels(changed.read(2).image), pixels(Corruption("gaussian-noise", 2)(colours(seed=2), "z")))


@pytest.mark.parametrize("text", ["fog:1", "jpeg", "jpeg:0", "jpeg:6", "jpeg:1.5", ":1", ""])
def test_shifts_that_are_none_are_refused(text):
    with pytest.raises(InputError, match=f"of gaussian-noise, .*; got {text.replace('.', '[.]')}"):
        Corruption.parse(text)
