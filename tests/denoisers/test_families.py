"""Every pipeline class of the installed diffusers is supported, or there is a reason why not."""

import importlib.util
import re
from pathlib import Path

import diffusers
import pytest

from diffusion_classifier.denoisers.families.class_unet import ClassUNet
from diffusion_classifier.denoisers.families.late import LateConditionedPipeline
from diffusion_classifier.denoisers.families.registry import _REASONS, FAMILIES, PIPELINES, why_unsupported

KINDS = sorted(name for name in diffusers._import_structure["pipelines"] if name.endswith("Pipeline"))


def test_no_pipeline_belongs_to_two_families():
    assert sum(len(family.pipelines) for family in FAMILIES) == len(PIPELINES)
    assert len({family.family for family in FAMILIES}) == len(FAMILIES)


def test_there_are_many():
    assert len(KINDS) > 200
    assert set(PIPELINES) - {LateConditionedPipeline.__name__} <= set(KINDS)


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
    assert kind not in PIPELINES
    assert reason in why_unsupported(kind)


def test_the_page_of_models_names_every_pipeline():
    """Written by tools/models_page.py from the same table."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    supported, others = page.split("## Not supported")
    assert all(f"`{kind}`" in supported for kind in PIPELINES)
    paragraphs = re.findall(r"^\*\*(.+)\.\*\* (.+)$", others, re.MULTILINE)
    told = {kind: reason for reason, kinds in paragraphs for kind in kinds.split(", ")}
    reasons = {f"`{kind}`": why_unsupported(kind) for kind in KINDS if kind not in PIPELINES}
    assert told == {kind: reason[0].upper() + reason[1:] for kind, reason in reasons.items()}


def test_the_text_of_the_page_is_that_of_the_tool():
    tool = Path(__file__).parents[2] / "tools" / "models_page.py"
    spec = importlib.util.spec_from_file_location("models_page", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (tool.parents[1] / "docs" / "models.md").read_text("utf-8")
    parts = re.split(r"\{\w+\}", module.TEMPLATE)
    assert len(parts) == 5
    assert all(part in page for part in parts)
    shown = {module.PIPELINES[example.pipeline] for example in module.EXAMPLES} | {ClassUNet}
    assert shown == set(FAMILIES)


def test_every_reason_is_given_of_some_pipeline():
    given = {why_unsupported(kind) for kind in KINDS if kind not in PIPELINES}
    assert given == {reason for _, reason in _REASONS} | {"nobody has written an adapter for it"}
