import inspect
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from caption_files import winoground as winoground_file
from image_files import greys, png, webdataset

from diffusion_classifier.data import fashion
from diffusion_classifier.data.prompts import fill_template
from diffusion_classifier.diffusion.losses import check_loss
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.source import open_run_source
from diffusion_classifier.search.strategies import parse_strategy
from diffusion_classifier.tasks import CAPTION_TASKS, TASKS, find_preset, find_task, open_caption_task, open_task


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_tasks_are_complete(task):
    assert task.name == task.name.lower()
    fill_template(task.template, ["x"])
    assert all((task.title, task.licence, task.citation, task.num_classes > 1, task.num_images > 0))
    assert task.open is not None or "/" in task.source
    assert task.class_names is None or len(task.class_names) == task.num_classes
    if task.imagenet_ids is not None:
        assert list(task.imagenet_ids) == sorted(set(task.imagenet_ids))
        assert len(task.imagenet_ids) == task.num_classes
    for preset in task.presets.values():
        parse_strategy(preset.strategy).init(task.num_classes)
        check_loss(preset.loss)


def test_the_papers_are_there():
    assert {name for name, task in TASKS.items() if "paper" in task.presets} == {
        "food101", "cifar10", "cifar100", "aircraft", "pets", "flowers102", "stl10", "imagenet", "objectnet",
    }  # fmt: skip
    assert {name for name, task in TASKS.items() if "paper-dit" in task.presets} == {
        "imagenet", "imagenetv2", "imagenet-a",
    }  # fmt: skip


def test_the_bundled_images():
    task, source = open_task("fashion-sample")
    samples = fashion.load_sample()
    assert len(source) == task.num_images == len(samples)
    assert np.bincount(source.labels).tolist() == [100] * 10
    assert [source.class_names[i] for i in source.labels] == [sample.label for sample in samples]
    assert source.read(7) == samples[7].image
    _, renamed = open_task("fashion-sample", class_names=list("abcdefghij"))
    assert renamed.class_names == tuple("abcdefghij")


HUB = [name for name, task in TASKS.items() if task.source.startswith("clip-benchmark/")]


@pytest.mark.parametrize("name", HUB)
def test_a_copy_of_the_schema_of_clip_benchmark(name, tmp_path):
    """Small, but with all the classes."""
    k = TASKS[name].num_classes
    folder = webdataset(tmp_path / "d", [k - 1, 0, 1])
    (folder / "classnames.txt").write_text("".join(f"class {i}\n" for i in range(k)))
    task, source = open_task(name, data=str(folder))
    assert task is TASKS[name]
    assert (len(source.class_names), source.labels) == (k, (k - 1, 0, 1))
    assert source.class_names[0] == "class 0"
    assert greys(source) == [10, 20, 30]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_copy_of_a_table_of_the_hub(name, tmp_path, monkeypatch):
    """With names of its own, which are the task's in other words, where it is the hub's."""
    own = [f"no. {i}" for i in range(10)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=own))
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": [3, 9, 0]}
    table = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "d").mkdir()
    table.to_parquet(tmp_path / "d" / "test-00000-of-00001.parquet")
    _, source = open_task(name, data=str(tmp_path / "d"))
    assert (source.class_names, source.labels, greys(source)) == (tuple(own), (3, 9, 0), [0, 1, 2])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda source, split: {(TASKS[name].source, "test"): table}[source, split]
    )
    _, source = open_task(name)
    assert source.class_names == TASKS[name].class_names


def test_a_part_in_which_some_classes_do_not_occur(tmp_path):
    labels = (2, 9, 0)
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": labels}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    task, source = open_task("mnist", data=str(tmp_path / "x.parquet"))
    assert (source.class_names, source.labels) == (task.class_names, labels)
    for others, message in (([0, 1, 10], "has 3 classes; those of mnist are 10"), ([1, 2, 9], "these begin at 1")):
        table = datasets.Dataset.from_dict(columns | {"label": others}, features=features)
        table.to_parquet(tmp_path / "y.parquet")
        with pytest.raises(InputError, match=message):
            open_task("mnist", data=str(tmp_path / "y.parquet"))


def test_folders_of_imagenet_that_are_called_by_numbers(tmp_path):
    """As in the archive of ImageNetV2; by letters, 10 comes before 2."""
    for i in range(1000):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "a.png").write_bytes(png(i % 256))
    source = open_task("imagenetv2", data=str(tmp_path))[1]
    assert source.class_names == tuple(map(str, range(1000)))
    assert all(source.ids[i] == f"{source.labels[i]}/a.png" for i in range(1000))


def test_data_of_ones_own(tmp_path):
    task, source = open_task(str(webdataset(tmp_path / "d")))
    assert task is None
    assert source.class_names == ("cat", "dog")


def test_a_packaged_task_is_not_a_folder_of_its_name(tmp_path, monkeypatch):
    """As where a run of it is kept."""
    task, source = open_task("fashion-sample")
    about = {"task": task.name, "source": source.name, "class_names": source.class_names, "shift": ""}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion-sample").mkdir()
    assert open_run_source(SimpleNamespace(**about)).fingerprint() == source.fingerprint()
    with pytest.raises(InputError, match="the task fashion-sample has no use for --label-column"):
        open_task("fashion-sample", label_column="x")


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="no task 'pet', nor a folder or file of that name; tasks are pets"):
        open_task("pet")
    with pytest.raises(InputError, match="tasks are food101, cifar10"):
        find_task("zzz")
    with pytest.raises(InputError, match="has 2 classes; those of pets are 37"):
        open_task("pets", data=str(webdataset(tmp_path / "d")))
    with pytest.raises(InputError, match="no preset 'ours' for pets; known are: paper"):
        find_preset(TASKS["pets"], "ours")
    with pytest.raises(InputError, match="no preset 'paper' for data of your own; known are: none"):
        find_preset(None, "paper")


@pytest.mark.parametrize("task", CAPTION_TASKS.values(), ids=CAPTION_TASKS)
def test_tasks_of_captions_are_complete(task):
    assert find_task(task.name) is task
    assert task.name not in TASKS
    assert all((task.title, task.licence, task.citation))
    assert set(task.takes) <= set(inspect.signature(task.open).parameters)
    for preset in task.presets.values():
        parse_strategy(preset.strategy).init(2)
        check_loss(preset.loss)


def test_captions_by_task(tmp_path):
    winoground = CAPTION_TASKS["winoground"]
    source = open_caption_task(
        winoground, data=str(winoground_file(tmp_path / "w.parquet")), images=None, false_column=()
    )
    assert (len(source), source.paired) == (6, True)
    with pytest.raises(InputError, match="the task winoground has no use for --false-column"):
        open_caption_task(winoground, false_column=("x",))
    with pytest.raises(InputError, match="the images of winoground have captions of their own, not classes"):
        open_task("winoground")
    assert find_preset(winoground, "paper").strategy == "fixed:1000"
