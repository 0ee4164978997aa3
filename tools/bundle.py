"""Put a trained model into the package: weights in float16, and how held-out images say that it is best read.

python tools/bundle.py build/fashion fashion
(error tables of held-out images in build/validation: see fashion_held_out.py)
diffusion-classifier calibrate build/validation --out build/calibration.json
python tools/bundle.py build/fashion fashion --calibration build/calibration.json
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusion_classifier.denoisers import SETTINGS_FILE
from diffusion_classifier.denoisers.families import LateConditionedPipeline
from diffusion_classifier.training import CONTRASTIVE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("name")
parser.add_argument("--calibration", type=Path)
options = parser.parse_args()

out = Path(__file__).parents[1] / "src/diffusion_classifier/zoo" / options.name
if options.model.resolve() != out:
    # Half the size; what this changes is part of what is measured, which is done on the saved files.
    index = json.loads((options.model / "model_index.json").read_text("utf-8"))
    late = index["_class_name"] == LateConditionedPipeline.__name__  # which diffusers does not know
    pipeline_class = LateConditionedPipeline if late else DiffusionPipeline
    pipeline_class.from_pretrained(options.model, dtype=torch.float16).save_pretrained(out)
    contrastive = options.model / CONTRASTIVE
    if contrastive.is_dir():
        for kind in (CLIPTokenizer, CLIPImageProcessorPil):
            kind.from_pretrained(contrastive).save_pretrained(out / CONTRASTIVE)
        CLIPModel.from_pretrained(contrastive, dtype=torch.float16).save_pretrained(out / CONTRASTIVE)
    for file in out.rglob("*.json"):  # diffusers notes in them from where they were loaded
        content = json.loads(file.read_text("utf-8"))
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
settings = json.loads((options.model / SETTINGS_FILE).read_text("utf-8"))
settings["licence"] = "Apache-2.0"
settings.pop("defaults", None)
lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
if options.calibration:  # compact: its lags are as many as there were images
    lines.append(f'"defaults": {options.calibration.read_text("utf-8").strip()}')
(out / SETTINGS_FILE).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", "utf-8")
print(f"{sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB: {out}")
