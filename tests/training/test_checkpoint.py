"""A training writes to empty folders, and to those that it wrote to before."""

from contextlib import nullcontext

import pytest

from diffusion_classifier.errors import InputError
from diffusion_classifier.training.checkpoint import check_out


@pytest.mark.parametrize(
    ("files", "in_stages", "allowed"),
    [
        ([], False, True),
        (["other.json"], False, True),
        (["model_index.json"], False, False),
        (["model_index.json"], True, False),
        (["model_index.json", "checkpoint/run.json"], False, True),
        (["model_index.json", "checkpoint/run.json"], True, False),  # of a training in one stage
        (["model_index.json", "checkpoint/diffusion/run.json"], True, True),
        (["model_index.json", "checkpoint/diffusion/run.json"], False, False),
        (["checkpoint/run.json"], True, True),  # interrupted before it wrote a model
    ],
)
def test_only_a_model_of_the_same_kind_of_training_is_overwritten(files, in_stages, allowed, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    error = pytest.raises(InputError, match="holds a model that no training here made: choose another --out")
    with nullcontext() if allowed else error:
        check_out(tmp_path, "model_index.json", in_stages=in_stages)
