"""Put a trained model into the package: weights in float16, and how the validation split says it is best read.

python tools/bundle_fashion.py build/fashion
(error tables of held-out images in build/validation: see fashion_held_out.py)
diffusion-classifier calibrate build/validation --out build/calibration.json
python tools/bundle_fashion.py build/fashion --calibration build/calibration.json
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import DDPMPipeline

from diffusion_classifier.denoisers.load import SETTINGS_FILE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("--calibration", type=Path)
options = parser.parse_args()

out = Path(__file__).parents[1] / "src/diffusion_classifier/zoo/fashion"
if options.model.resolve() != out:
    # Half the size; what this changes is part of the measured accuracy, which is that of the saved files.
    DDPMPipeline.from_pretrained(options.model, dtype=torch.float16).save_pretrained(out)
    for file in out.rglob("*.json"):  # diffusers notes in them from where they were loaded
        content = json.loads(file.read_text("utf-8"))
        content.pop("_name_or_path", None)
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
settings = json.loads((options.model / SETTINGS_FILE).read_text("utf-8"))
settings["licence"] = "Apache-2.0"
settings.pop("defaults", None)
lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
if options.calibration:  # compact: its lags are as many as there were images
    lines.append(f'"defaults": {options.calibration.read_text("utf-8").strip()}')
(out / SETTINGS_FILE).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", "utf-8")
print(f"{sum(f.stat().st_size for f in out.rglob('*')) / 1e6:.1f} MB: {out}")
