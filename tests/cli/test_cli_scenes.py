import csv

import datasets
import numpy as np
import pytest
from commands import error
from PIL import Image

from diffusion_classifier.data.scenes import load_photographs, scene


class TestScenes:
    def test_a_folder_to_look_at(self, call, tmp_path):
        out = tmp_path / "look"
        assert call("scenes", "--out", out, "--number", 3, "--seed", 5)[:2] == (0, "")
        rows = list(csv.DictReader((out / "metadata.csv").open(encoding="utf-8")))
        photographs = load_photographs()
        for i, row in enumerate(rows):
            made = scene(photographs, 5, i)
            assert row["text"] == made.caption
            shown = np.asarray(Image.open(out / row["file_name"]))
            assert (shown == np.asarray(photographs.render(made.things))).all()
        assert len(rows) == 3

    def test_one_file(self, call, tmp_path):
        call("scenes", "--out", tmp_path / "look", "--number", 2)
        call("scenes", "--out", tmp_path / "new/s.parquet", "--number", 2)
        table = datasets.load_dataset("parquet", data_files=str(tmp_path / "new/s.parquet"), split="train")
        folder = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "look"), split="train")
        for a, b in zip(table, folder, strict=True):
            assert a["text"] == b["text"]
            assert a["image"].tobytes() == b["image"].tobytes()

    def test_mistakes(self, call, tmp_path):
        call("scenes", "--out", tmp_path / "look", "--number", 1)
        code, _, err = call("scenes", "--out", tmp_path / "look")
        assert (code, "already exists" in error(err)) == (2, True)
        code, _, err = call("scenes", "--out", tmp_path / "m", "--seed", -1)
        assert (code, "Traceback" in err) == (2, False)
        code, _, err = call("scenes", "--out", tmp_path / "m", "--split", "train")
        assert (code, "only test photographs are bundled" in error(err)) == (2, True)
        code, _, err = call("scenes", "--out", tmp_path / "m", "--data", tmp_path)
        assert (code, "has no file t10k-images-idx3-ubyte" in error(err)) == (2, True)


class TestTrainOnCaptions:
    TINY = ("--contrastive", "width=32,layers=1,epochs=1,batch_size=8", "--autoencoder",
            "channels=8/8,latent_channels=4,epochs=1,batch_size=8", "--channels", "8", "--layers", 1, "--epochs", 1,
            "--batch-size", 8, "--device", "cpu")  # fmt: skip

    def test_from_scenes_to_labels(self, call, tmp_path):
        call("scenes", "--out", tmp_path / "look", "--number", 16)
        code, out, err = call("train", tmp_path / "look", "--out", tmp_path / "model", *self.TINY)
        assert (code, out) == (0, "")
        lines = err.splitlines()
        assert any(line.startswith("16 images with ") for line in lines)
        for stage in ("contrastive", "autoencoder", "diffusion"):
            assert any(line.startswith(f"{stage}, step 2 of 2: loss ") for line in lines)
        labels = "a dark sweater,a small handbag"
        image = tmp_path / "look" / "000000.png"
        code, out, err = call("classify", image, "--model", tmp_path / "model", "--labels", labels, "--draws", 2)
        assert code == 0
        assert "sweater" in out
        code, out, err = call("classify", image, "--model", tmp_path / "model", "--labels", "a giraffe,a bag")
        assert (code, "has the word 'giraffe'" in error(err)) == (2, True)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (("--contrastive", "width=wide"), "width='wide' is not a value as 128 is"),
            (("--validation", 1), "--validation is for class-conditional models"),
            (("--flip",), "not for models that read captions"),
            (("--caption-column", "words"), "has no column 'words'; it has image, text"),
        ],
    )
    def test_mistakes(self, call, tmp_path, options, sentence):
        call("scenes", "--out", tmp_path / "look", "--number", 2)
        code, out, err = call("train", tmp_path / "look", "--out", tmp_path / "model", *self.TINY, *options)
        assert (code, out) == (2, "")
        assert sentence in err.splitlines()[-1]

    def test_an_image_without_a_caption(self, call, tmp_path):
        call("scenes", "--out", tmp_path / "look", "--number", 2)
        table = tmp_path / "look" / "metadata.csv"
        table.write_text(table.read_text().rpartition("000001.png,")[0] + "000001.png,\n")
        code, _, err = call("train", tmp_path / "look", "--out", tmp_path / "model", *self.TINY)
        assert code == 2
        assert "[1] has no caption: column 'text' holds None" in error(err)
