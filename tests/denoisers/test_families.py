"""Every pipeline class of the installed diffusers is either supported or says why not."""

import diffusers
import pytest

from diffusion_classifier.denoisers.families import _REASONS, FAMILIES, why_unsupported

KINDS = sorted(name for name in diffusers._import_structure["pipelines"] if name.endswith("Pipeline"))


def test_there_are_many():
    assert len(KINDS) > 200
    assert set(FAMILIES) <= set(KINDS)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("WanPipeline", "videos"),
        ("StableAudioPipeline", "sounds"),
        ("StableDiffusionControlNetPipeline", "control image"),
        ("FluxFillPipeline", "changes a given image"),
        ("StableDiffusionUpscalePipeline", "smaller"),
        ("KandinskyV22Pipeline", "prior"),
        ("AmusedPipeline", "discrete"),
        ("LDMPipeline", "unconditional"),
        ("FluxImg2ImgPipeline", "another way of sampling"),
        ("AuraFlowPipeline", "nobody has written an adapter"),
        ("FluxKontextPipeline", "changes a given image"),
        ("StableDiffusionPix2PixZeroPipeline", "another way of sampling"),
        ("LatentConsistencyModelImg2ImgPipeline", "another way of sampling"),
        ("Cosmos2TextToImagePipeline", "nobody has written an adapter"),
        ("Kandinsky3Pipeline", "nobody has written an adapter"),
    ],
)
def test_reasons(kind, reason):
    assert kind in KINDS
    assert kind not in FAMILIES
    assert reason in why_unsupported(kind)


def test_every_reason_is_given_of_some_pipeline():
    given = {why_unsupported(kind) for kind in KINDS if kind not in FAMILIES}
    assert given == {reason for _, reason in _REASONS} | {"nobody has written an adapter for it"}
