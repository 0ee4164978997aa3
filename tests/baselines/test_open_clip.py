import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_model

from diffusion_classifier.baselines import find_baseline, kind_of, load_baseline
from diffusion_classifier.baselines.contrastive import Contrastive
from diffusion_classifier.baselines.open_clip import OpenClip
from diffusion_classifier.errors import InputError

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TEXTS = ["a dog", "a cat on a mat", "the moon"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    return tmp_path


def test_files_that_are_recognized(folder):
    """The hub has configs of timm beside those of open_clip."""
    assert (kind_of(folder), find_baseline(folder)) == ("contrastive", OpenClip)
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    assert (kind_of(folder), find_baseline(folder)) == ("contrastive", OpenClip)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert (kind_of(folder), find_baseline(folder)) == ("contrastive", Contrastive)


class TestModel:
    @pytest.fixture
    def model(self, folder):
        """A ResNet, which transformers does not have, with random weights."""
        open_clip = pytest.importorskip("open_clip", reason="needs open_clip, which needs torchvision")
        torch.manual_seed(0)
        model = open_clip.model.CLIP(**CONFIG).eval()
        save_model(model, folder / "open_clip_model.safetensors")
        return model

    def test_it_embeds_and_scores_as_the_library(self, folder, model):
        import open_clip

        own = load_baseline(folder, device="cpu")
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
        _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        with torch.inference_mode():
            texts = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
            _, logits = model.get_logits(transform(image)[None], texts)
        scored = own.logits_for(TEXTS)(image, range(3))
        torch.testing.assert_close(scored, logits[:, 0], rtol=1e-4, atol=1e-4)
        assert (own.image_size, own.device.type) == (32, "cpu")
        assert len(own.fingerprint()) == len(load_baseline(folder, device="cpu").fingerprint())

    @pytest.mark.usefixtures("model")
    def test_no_text_is_cut_short(self, folder):
        own = load_baseline(folder, device="cpu")
        own.encode_texts(["cat " * 10])
        for count in (11, 12, 100):
            with pytest.raises(InputError, match="tokens too long"):
                own.encode_texts(["a dog", "cat " * count])

    @pytest.mark.usefixtures("model")
    def test_weights_that_could_run_code_are_refused(self, folder):
        (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
        with pytest.raises(InputError, match="other formats are not loaded") as e:
            load_baseline(folder)
        assert "cannot be loaded" not in str(e.value)


def test_without_the_library(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match="needs open_clip"):
        load_baseline(folder)
