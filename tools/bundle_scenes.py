"""Put a model trained on scenes into the package: weights in float16, and how held-out scenes say it is best read.

python tools/bundle_scenes.py build/scenes
diffusion-classifier calibrate build/scenes-nouns --out build/calibration.json
python tools/bundle_scenes.py build/scenes --calibration build/calibration.json
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusion_classifier.denoisers.load import SETTINGS_FILE
from diffusion_classifier.training.text import CONTRASTIVE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("--calibration", type=Path)
options = parser.parse_args()

out = Path(__file__).parents[1] / "src/diffusion_classifier/zoo/scenes"
if options.model.resolve() != out:
    # Half the size; what this changes is part of what is measured, on the saved files.
    pipeline = StableDiffusionPipeline.from_pretrained(options.model, safety_checker=None, dtype=torch.float16)
    pipeline.save_pretrained(out)
    source = options.model / CONTRASTIVE
    for kind in (CLIPTokenizer, CLIPImageProcessorPil):
        kind.from_pretrained(source).save_pretrained(out / CONTRASTIVE)
    CLIPModel.from_pretrained(source, dtype=torch.float16).save_pretrained(out / CONTRASTIVE)
    for file in out.rglob("*.json"):  # diffusers notes in them from where they were loaded
        content = json.loads(file.read_text("utf-8"))
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
settings = json.loads((options.model / SETTINGS_FILE).read_text("utf-8"))
settings["licence"] = "Apache-2.0"
settings.pop("defaults", None)
lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
if options.calibration:
    lines.append(f'"defaults": {options.calibration.read_text("utf-8").strip()}')
(out / SETTINGS_FILE).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", "utf-8")
print(f"{sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB: {out}")
