"""Files of captioned images: in the schema of Winoground, and rows with negative captions."""

import json

import datasets
from image_files import png

TAGS = ("Object", "Relation", "Both")

ROWS = [
    {"image": f"images/{i}.png", "caption": f"a cat {i}", "negative_caption": f"a dog {i}", "kind": "swap"}
    for i in range(3)
]


def winoground(file, count=3, without=(), broken=(), content=png):
    """Write a file in the schema of facebook/winoground. Image k of example e has the grey value 10·e + k."""
    image, text = datasets.Image(), datasets.Value("string")
    kinds = {
        "id": datasets.Value("int32"), "image_0": image, "image_1": image, "caption_0": text, "caption_1": text,
        "tag": text, "secondary_tag": text, "num_main_preds": datasets.Value("int32"), "collapsed_tag": text,
    }  # fmt: skip
    columns = {
        "id": range(count),
        **{
            f"image_{k}": [
                {"bytes": b"" if (e, k) in broken else content(10 * e + k), "path": f"ex_{e}_img_{k}.png"}
                for e in range(count)
            ]
            for k in (0, 1)
        },
        "caption_0": [f"a {e} on b" for e in range(count)],
        "caption_1": [f"b on a {e}" for e in range(count)],
        "tag": ["Noun"] * count,
        "secondary_tag": [""] * count,
        "num_main_preds": [1] * count,
        "collapsed_tag": [TAGS[e % 3] for e in range(count)],
    }
    kinds = {name: kind for name, kind in kinds.items() if name not in without}
    table = datasets.Dataset.from_dict({name: list(columns[name]) for name in kinds}, datasets.Features(kinds))
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()  # tests compare the output of the command
    table.to_parquet(file)
    datasets.enable_progress_bars()
    return file


def write_rows(file, rows):
    if file.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    elif file.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        file.write_text("\n".join(lines) + "\n")
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text(json.dumps(rows))
    return str(file)
