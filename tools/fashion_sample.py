"""Write the bundled sample, 100 test images per class of Fashion-MNIST, to a Parquet file that `datasets` can read.

python tools/fashion_sample.py /usr/share/datasets/fashion-mnist
"""

import argparse
import io
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from PIL import Image

from diffusion_classifier.training import load_labelled_images

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PER_CLASS = 100

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="folder with the four IDX files of Fashion-MNIST")
options = parser.parse_args()
data = load_labelled_images(options.data, split="test", class_names=NAMES)
seen: Counter[int] = Counter()
rows = []
for index, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
    seen[label] += 1
    if seen[label] <= PER_CLASS:
        png = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(png, "PNG", optimize=True)
        rows.append({"image": {"bytes": png.getvalue(), "path": None}, "label": NAMES[label], "index": index})
schema = Features(image=datasets.Image(), label=Value("string"), index=Value("int64")).arrow_schema
table = pa.Table.from_pylist(rows, schema)
table = table.replace_schema_metadata(
    {
        **schema.metadata,
        "source": "Fashion-MNIST test set, https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, copyright 2017 Zalando SE",
    }
)
out = Path(__file__).parents[1] / "src/diffusion_classifier/zoo/fashion_sample.parquet"
pq.write_table(table, out, compression="zstd")
print(f"{len(rows)} images, {out.stat().st_size} bytes: {out}")
