"""Put a trained model into the package: weights in float16, and what the validation split chose.

python tools/bundle_fashion.py build/fashion --strategy staged:4,16/3,1 --loss l2 --temperature 2.5
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import DDPMPipeline

from diffusion_classifier.denoisers.load import SETTINGS_FILE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("--strategy", required=True)
parser.add_argument("--loss", required=True)
parser.add_argument("--timesteps", default="even")
parser.add_argument("--temperature", type=float, required=True)
options = parser.parse_args()

out = Path(__file__).parents[1] / "src/diffusion_classifier/zoo/fashion"
# Half the size; what this changes is part of the measured accuracy, which is that of the saved files.
DDPMPipeline.from_pretrained(options.model, dtype=torch.float16).save_pretrained(out)
for file in out.rglob("*.json"):  # diffusers notes in them from where they were loaded
    content = json.loads(file.read_text("utf-8"))
    content.pop("_name_or_path", None)
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
settings = json.loads((options.model / SETTINGS_FILE).read_text("utf-8"))
settings["licence"] = "Apache-2.0"
settings["defaults"] = {key: getattr(options, key) for key in ("strategy", "loss", "timesteps", "temperature")}
(out / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
print(f"{sum(f.stat().st_size for f in out.rglob('*')) / 1e6:.1f} MB: {out}")
