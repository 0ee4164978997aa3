"""Bundle a trained model in the package, with float16 weights and defaults calibrated on held-out images.

python tools/bundle.py build/fashion fashion
(fashion_held_out.py shows how to write the error tables of held-out images to build/validation)
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
parser.add_argument("model", type=Path, help="folder of the trained model")
parser.add_argument("name", help="name of the bundled model")
parser.add_argument("--calibration", type=Path, help="file of `calibrate` (default: no calibrated defaults)")
options = parser.parse_args()

out = Path(__file__).parents[1] / "src/diffusion_classifier/zoo" / options.name
if options.model.resolve() != out:
    # float16 halves the size. All measurements use the saved files, so they include the effect of rounding.
    index = json.loads((options.model / "model_index.json").read_text("utf-8"))
    late = index["_class_name"] == LateConditionedPipeline.__name__  # a class that diffusers lacks
    pipeline_class = LateConditionedPipeline if late else DiffusionPipeline
    pipeline_class.from_pretrained(options.model, dtype=torch.float16).save_pretrained(out)
    contrastive = options.model / CONTRASTIVE
    if contrastive.is_dir():
        for kind in (CLIPTokenizer, CLIPImageProcessorPil):
            kind.from_pretrained(contrastive).save_pretrained(out / CONTRASTIVE)
        CLIPModel.from_pretrained(contrastive, dtype=torch.float16).save_pretrained(out / CONTRASTIVE)
    for file in out.rglob("*.json"):  # diffusers stores the path that each was loaded from
        content = json.loads(file.read_text("utf-8"))
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
settings = json.loads((options.model / SETTINGS_FILE).read_text("utf-8"))
settings["licence"] = "Apache-2.0"
settings.pop("defaults", None)
lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
if options.calibration:  # compact, because it holds one lag per image
    lines.append(f'"defaults": {options.calibration.read_text("utf-8").strip()}')
(out / SETTINGS_FILE).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", "utf-8")
print(f"{sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB: {out}")
