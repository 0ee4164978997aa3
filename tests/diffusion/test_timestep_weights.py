import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_classifier.diffusion.timestep_weights import read_weights, weights_at
from diffusion_classifier.errors import InputError

NUMBERS = st.lists(st.floats(0, 100), min_size=2, max_size=12).filter(lambda w: max(w) > 1e-3)


@given(NUMBERS)
def test_brought_to_an_average_of_one(numbers):
    weights = read_weights(numbers)
    u = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    assert float(weights_at(weights, u).mean()) == pytest.approx(1, rel=1e-3)
    knots = weights_at(weights, torch.linspace(0, 1, len(numbers), dtype=torch.float64))
    np.testing.assert_allclose(knots * max(numbers), np.array(numbers) * knots.max().item(), atol=1e-9)


def test_a_function_and_files(tmp_path):
    """All are the same weights, read between the numbers too."""
    u = torch.rand(50, dtype=torch.float64)
    from_function = read_weights(lambda u: 3 - 2 * u)
    torch.testing.assert_close(weights_at(from_function, u), (3 - 2 * u) / 2)
    (tmp_path / "w.json").write_text("[3, 1]")
    (tmp_path / "c.json").write_text(json.dumps({"strategy": "fixed:3", "weights": [6, 4, 2]}))
    for source in (tmp_path / "w.json", str(tmp_path / "c.json"), np.array([3, 2.5, 2, 1.5, 1]), (3, 1)):
        torch.testing.assert_close(weights_at(read_weights(source), u), (3 - 2 * u) / 2)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([1.0], "at least two numbers"),
        ([[1.0, 2.0]], "at least two numbers"),
        ([1, "a"], "at least two numbers"),
        ([1, -1], "none below 0"),
        ([0, 0], "some above"),
        ([1, float("nan")], "finite"),
        (lambda u: u - 1, "none below 0"),
        ("nowhere.json", "cannot be read as weights"),
        (lambda u: math.exp(-7 * u), "must be a function of a tensor"),
    ],
)
def test_what_is_refused(source, sentence):
    with pytest.raises(InputError, match=sentence):
        read_weights(source)


@pytest.mark.parametrize("content", ["", "{}", "3", '"uniform"', '{"weights": null}'])
def test_files_that_hold_no_weights(tmp_path, content):
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(InputError, match="weights"):
        read_weights(tmp_path / "w.json")
