"""The engine gives what the plain loop gives that its speed is measured against."""

import sys
from pathlib import Path

import pytest
import torch

from diffusion_classifier import Staged
from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.diffusion.draws import Draws
from diffusion_classifier.search.engine import score
from diffusion_classifier.search.jobs import ImageJob
from diffusion_classifier.search.posterior import mean_errors
from diffusion_classifier.search.settings import ScoringSettings

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from reference import reference

CLASSES = {"sd-v": ["a cat", "a dog", "a pug", "a cup"], "dit": [0, 4, 2, 7], "class-unet": [2, 0, 1]}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("schedule", [Staged((12,), (1,)), Staged((2, 12), (2, 1))], ids=str)
def test_engine_equals_reference(model_folder, name, schedule):
    denoiser = load_denoiser(model_folder(name), device="cpu", dtype="float32")
    conditioning = denoiser.condition(CLASSES[name])
    size = denoiser.image_size
    generator = torch.Generator().manual_seed(0)
    jobs = [ImageJob(str(i), torch.rand(3, size, size, generator=generator) * 2 - 1, i) for i in range(3)]
    found = {r.name: r for r in score(denoiser, jobs, conditioning, ScoringSettings(schedule), batch_size=7)}
    for job in jobs:
        errors, winner = reference(denoiser, job.image, job.key, conditioning, schedule, Draws())
        result = found[job.name]
        torch.testing.assert_close(result.errors, errors, rtol=1e-5, atol=0, equal_nan=True)
        assert int(mean_errors(result.errors).where(result.active, torch.inf).argmin()) == winner
