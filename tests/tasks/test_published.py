"""Every task on a small copy of its real schema: files, columns, class names and templates as they are published.

`class_names.json` holds the names of the hub's copies, which CLIP benchmark made of torchvision's, TensorFlow Datasets'
and CLIP's lists; "sizes" are those of classnames.txt and zeroshot_classification_templates.txt on the hub, in bytes.
"""

import json
import tarfile
from pathlib import Path

import builders
import contrastive_builders
import datasets
import pytest
from caption_files import winoground as winoground_file
from image_files import add_member, png

from diffusion_classifier.runs.selection import candidates
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows
from diffusion_classifier.tasks import CAPTION_TASKS, TASKS, open_task

PUBLISHED = json.loads(Path(__file__).with_name("class_names.json").read_text("utf-8"))
NAMES, TEMPLATES = PUBLISHED["names"], PUBLISHED["templates"]
IMAGENET = ("imagenet", "imagenetv2", "imagenet-a")
TABLES = ("mnist", "fashion-mnist")
SHARDS = [name for name, task in TASKS.items() if task.source.startswith("clip-benchmark/")]


def names_of(task):
    """As in classnames.txt, or as a table of the hub declares them."""
    if task == "imagenet-a":
        return [NAMES["imagenet"][i] for i in TASKS[task].imagenet_ids]
    return NAMES["imagenet" if task == "imagenetv2" else task]


def templates_of(task):
    return TEMPLATES["imagenet" if task in (*IMAGENET, "objectnet") else task]  # objectnet has none of its own


def shards(folder, task, labels, with_names=True):
    """Four shards of a test split, as CLIP benchmark's `convert_dataset` writes them; JPEG where the originals are."""
    (folder / "test").mkdir(parents=True)
    for shard in range(4):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for i in range(shard, len(labels), 4):
                add_member(tar, f"s{i:07d}.cls", str(labels[i]).encode())
                add_member(tar, f"s{i:07d}.{'jpg' if task in IMAGENET else 'webp'}", png(40 * i))
    (folder / "test" / "nshards.txt").write_text("4\n")
    if with_names:
        (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in names_of(task)))
        text = "".join(f"{template}\n" for template in templates_of(task))
        (folder / "zeroshot_classification_templates.txt").write_text(text)
    return folder


def table(folder, task, labels):
    """As on the hub: columns image and label, whose names are declared."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names_of(task)))
    images = [{"bytes": png(40 * i), "path": None} for i in range(len(labels))]
    folder.mkdir()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(
        folder / "test-00000-of-00001.parquet"
    )
    datasets.enable_progress_bars()
    return folder


def folders(folder, names):
    """A folder of one image for each class."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(png(i % 256))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny ones that read prompts of 75 letters, and one of ImageNet's thousand classes."""
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as m:
        for module in (builders, contrastive_builders):
            m.setattr(module, "MAX_TOKENS", 77)
        builders.stable_diffusion(root / "sd")
        contrastive_builders.build("clip", root / "clip")
        m.setattr(builders, "ID2LABEL", {str(i): f"n{i}, synonym {i}" for i in range(1000)})
        builders.dit(root / "dit", builders.ID2LABEL)
    return root


@pytest.fixture
def run(call, models, tmp_path):
    def run(task, model, *options, data=None):
        where = ("--data", data) if data else ()
        code, _, err = call(
            "evaluate",
            task,
            *where,
            "--model",
            models / model if isinstance(model, str) else model,
            "--out",
            tmp_path / "run",
            *options,
        )
        assert code == 0, err
        return read_spec(tmp_path / "run"), read_rows(tmp_path / "run").to_pylist(), err

    return run


def test_the_lists_are_as_long_as_the_files_on_the_hub():
    for task, sizes in PUBLISHED["sizes"].items():
        texts = names_of(task), templates_of(task)
        assert [sum(len(line.encode()) + 1 for line in lines) for lines in texts] == sizes, task
    for task in TASKS.values():
        if task.name in (*SHARDS, *TABLES):
            assert len(names_of(task.name)) == task.num_classes


def test_every_task_is_here():
    packaged = {name for name, task in TASKS.items() if task.open is not None}
    assert {*SHARDS, *TABLES} | packaged == set(TASKS)
    assert packaged == {"fashion-sample", "scenes-nouns"}


@pytest.mark.parametrize("name", [name for name in SHARDS if name not in IMAGENET])
def test_a_text_to_image_model(name, run, tmp_path):
    task, names = TASKS[name], names_of(name)
    k = len(names)
    spec, rows, err = run(name, "sd", "--strategy", "fixed:1", data=shards(tmp_path / "d", name, [k - 1, 0, 1, 1]))
    assert spec.class_names == tuple(names)
    assert [row["truth"] for row in sorted(rows, key=lambda row: row["id"])] == [
        names[k - 1],
        names[0],
        *[names[1]] * 2,
    ]
    assert all(row["prediction"] in names for row in rows)
    assert spec.templates == (task.template,)
    assert (spec.prompt_names or spec.class_names) == task.class_names
    assert ("in place" in err or f"the template of {name} is used" in err) == (
        [task.template.replace("{}", "{c}")] != templates_of(name)
    )


@pytest.mark.parametrize("name", IMAGENET)
def test_a_model_of_imagenets_classes(name, run, tmp_path):
    names = names_of(name)
    labels = [len(names) - 1, 0, 3]
    spec, rows, _ = run(name, "dit", "--strategy", "fixed:1", data=shards(tmp_path / "d", name, labels))
    assert spec.class_names == tuple(distinct(names))
    assert {row["truth"] for row in rows} == {names[label] for label in labels}
    assert (spec.templates, spec.prompt_names, len(rows[0]["posterior"])) == (None, None, len(names))


@pytest.mark.parametrize("name", ["cifar10", "aircraft", "food101"])
def test_a_contrastive_model_averages_all_templates(name, run, tmp_path):
    spec, _, err = run(name, "clip", data=shards(tmp_path / "d", name, [0, 1]))
    templates = templates_of(name)
    assert spec.templates == tuple(template.replace("{c}", "{}") for template in templates)
    assert (f"{len(templates)} templates beside the data are averaged" in err) == (len(templates) > 1)
    assert spec.notes == tuple(err.splitlines())


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_hub(name, run, tmp_path):
    names = names_of(name)
    spec, rows, _ = run(name, "sd", "--strategy", "fixed:1", data=table(tmp_path / "d", name, [9, 0, 1]))
    assert spec.class_names == tuple(names)
    assert [row["truth"] for row in sorted(rows, key=lambda row: row["id"])] == [names[9], names[0], names[1]]
    assert (spec.prompt_names or spec.class_names) == TASKS[name].class_names


def test_models_of_the_classes_by_their_published_names_or_by_numbers(run, tmp_path):
    """The bundled model knows "T-shirt/top"; the hub's table has "T - shirt / top"."""
    data = table(tmp_path / "d", "fashion-mnist", [9, 0])
    spec, rows, err = run("fashion-mnist", Path("fashion"), "--strategy", "fixed:1", data=data)
    assert (spec.class_names[0], spec.prompt_names) == ("T - shirt / top", TASKS["fashion-mnist"].class_names)
    assert {row["truth"] for row in rows} == {"Ankle boot", "T - shirt / top"}
    assert "1 of 10 classes are named for the model by the task fashion-mnist, as 'T-shirt/top' for" in err
    _, source = open_task("cifar10", data=str(folders(tmp_path / "n", map(str, range(10)))))
    assert list(candidates([*"0123456789"], TASKS["cifar10"], source)) == list(range(10))
    assert candidates(NAMES["cifar10"][::-1], TASKS["cifar10"], source) == tuple(NAMES["cifar10"])


@pytest.mark.parametrize("name", ["fashion-sample", "scenes-nouns"])
def test_images_in_the_package(name, run):
    spec, rows, _ = run(name, "sd", "--strategy", "fixed:1", "--limit", 2)
    assert (spec.class_names, spec.prompt_names, len(rows)) == (TASKS[name].class_names, None, 2)


def test_winoground(run, tmp_path):
    file = winoground_file(tmp_path / "test.parquet")
    spec, rows, _ = run("winoground", "sd", "--strategy", "fixed:1", data=file)
    assert (spec.kind, len(rows), rows[0]["candidates"]) == ("pairs", 6, ["a 0 on b", "b on a 0"])


def shown(out):
    """The rows of prompts."""
    return [line.split("\t") for line in out.partition("\n\n")[2].splitlines()[1:]]


AUTHORS = {
    "food101": {1: "a photo of baby back ribs, a type of food."},
    "cifar10": {0: "a blurry photo of a airplane.", 9: "a blurry photo of a truck."},
    "cifar100": {1: "a blurry photo of a aquarium fish.", 41: "a blurry photo of a lawn mower."},
    "aircraft": {72: "a photo of a F-16A/B, a type of aircraft.", 99: "a photo of a Yak-42, a type of aircraft."},
    "flowers102": {
        15: "a photo of a globe flower, a type of flower.",
        59: "a photo of a pink and yellow dahlia, a type of flower.",
        92: "a photo of a air plant, a type of flower.",
    },
    "stl10": {7: "a photo of a monkey."},
    "imagenet": {0: "a photo of a tench.", 842: "a photo of a swim trunks / shorts."},
    "objectnet": {13: "a photo of a butcher's knife.", 28: "a photo of a drying rack for plates."},
    "pets": dict(enumerate(PUBLISHED["authors_pets"])),
}
"""Some prompts of their files: task → label → prompt."""


class TestPrompts:
    @pytest.fixture
    def show(self, call, models, tmp_path):
        def show(task, *options, model="sd", code=0, **data):
            (where,) = data.values() or [None]
            wanted = () if where is None else ("--data", where)
            found, out, err = call("evaluate", task, *wanted, "--model", models / model, "--show-prompts", *options)
            assert found == code, err
            assert list(tmp_path.glob("run*")) == []
            return out, err

        return show

    @pytest.mark.parametrize("name", [name for name, task in TASKS.items() if "paper" in task.presets])
    def test_those_of_the_papers_authors(self, name, show, tmp_path, monkeypatch):
        data = shards(tmp_path / "d", name, [0, 1])
        monkeypatch.setattr("diffusion_classifier.denoisers.load.load_network", None)  # no weights are loaded
        out, _ = show(name, "--preset", "paper", "--limit", 1, data=data)
        rows = shown(out)
        assert len(rows) == TASKS[name].num_classes
        for label, prompt in AUTHORS[name].items():
            assert rows[label][0] == str(label)
            assert rows[label][2] == prompt

    def test_imagenets_names_that_two_classes_share(self, show, tmp_path):
        """Are told apart by WordNet's words; the preset keeps the published prompts, which tie."""
        data = shards(tmp_path / "d", "imagenet", [0])
        out, err = show("imagenet", "--limit", 1, data=data)
        prompts = {int(row[0]): row[2] for row in shown(out)}
        assert len(set(prompts.values())) == 1000
        words = {657: "missile", 744: "projectile", 836: "sunglass", 837: "sunglasses"}
        assert {i: prompts[i] for i in words} == {i: f"a photo of a {word}." for i, word in words.items()}
        assert "'projectile' (class 744), 'sunglass' (class 836)" in " ".join(err.split())
        out, err = show("imagenet", "--preset", "paper", "--limit", 1, data=data)
        assert len({row[2] for row in shown(out)}) == 998
        assert "ties count as wrong: missile (657), missile (744), sunglasses (836)" in " ".join(err.split())

    def test_mnist(self, show, tmp_path):
        out, _ = show("mnist", data=table(tmp_path / "d", "mnist", [0]))
        assert [row[2] for row in shown(out)] == [f"a photo of the number: '{i}'." for i in range(10)]

    @pytest.mark.parametrize("name", ["cifar100", "aircraft", "pets"])
    def test_folders_that_spell_names_otherwise(self, name, show, tmp_path):
        """And lie in another order."""
        task = TASKS[name]
        own = {spell(n): n for n in task.class_names}
        out, err = show(name, "--preset", "paper", data=folders(tmp_path / "d", own))
        rows = shown(out)
        assert [row[1] for row in rows] == sorted(own)
        preset = task.presets["paper"]
        wanted = dict(zip(task.class_names, preset.names or task.class_names, strict=True))
        template = preset.template or task.template
        assert [row[2] for row in rows] == [template.format(wanted[own[row[1]]]) for row in rows]
        assert "are named for the model by" in err

    def test_names_that_the_preset_has_no_prompts_for(self, show, tmp_path):
        data = folders(tmp_path / "d", ["plane", *NAMES["cifar10"][1:]])
        _, err = show("cifar10", "--preset", "paper", code=2, data=data)
        assert "has prompts for the classes of cifar10" in err
        assert "'plane'" in err
        out, _ = show("cifar10", "--preset", "paper", "--template", "my {}", data=data)
        assert ["7", "plane", "my plane"] in shown(out)

    @pytest.mark.parametrize("kind", ["folders", "padded", "shards"])
    def test_classes_that_are_called_by_numbers(self, kind, show, tmp_path):
        if kind == "shards":
            data = shards(tmp_path / "d", "cifar10", [3, 0, 5], with_names=False)
        else:
            data = folders(tmp_path / "d", [f"{i:0{1 + (kind == 'padded')}}" for i in range(10)])
        out, err = show("cifar10", data=data)
        assert [row[1] for row in shown(out)] == NAMES["cifar10"]
        assert "class names are the task's" in err
        assert ("7 of the 10 classes" in err) == (kind == "shards")

    def test_a_hundred_numbered_folders_are_in_the_order_of_the_numbers(self, run, tmp_path):
        data = folders(tmp_path / "d", map(str, range(100)))
        spec, rows, _ = run("cifar100", "sd", "--strategy", "fixed:1", "--limit", 3, data=data)
        assert spec.class_names == TASKS["cifar100"].class_names
        for row in rows:
            assert row["truth"] == spec.class_names[int(row["id"].split("/")[0])]

    @pytest.mark.parametrize("model", ["sd", "clip"])
    @pytest.mark.parametrize("names", ["0123456789", ["class_0", "class_1"], ["2019", "2020"], ["1.5", "-2"]])
    def test_numbers_say_nothing_to_a_model_that_reads_text(self, show, tmp_path, model, names):
        data = folders(tmp_path / "d", names)
        _, err = show(str(data), code=2, model=model)
        assert "are numbers" in err
        assert "--class-names" in err
        out, _ = show(str(data), "--template", "the number {}", model=model)
        assert [row[2] for row in shown(out)] == [f"the number {name}" for name in sorted(names)]

    def test_flowers_from_one_on(self, show, tmp_path):
        """As their keepers number them."""
        _, err = show("flowers102", code=2, data=folders(tmp_path / "d", map(str, range(1, 103))))
        assert "are numbers" in err

    def test_of_several_templates_one(self, show, tmp_path):
        data = shards(tmp_path / "d", "cifar10", [0, 1])
        out, err = show(str(data))
        assert "1 of 18 templates beside the data is used, 'a photo of a {}.'" in err
        assert shown(out)[3] == ["3", "cat", "a photo of a cat."]
        out, err = show(str(data), model="clip")
        assert "18 templates beside the data are averaged" in err
        assert "templates: 18, whose embeddings are averaged" in out

    def test_underscores_are_kept_and_said(self, show, tmp_path):
        out, err = show(str(folders(tmp_path / "d", ["apple_pie", "ramen"])))
        assert shown(out) == [["0", "apple_pie", "apple_pie"], ["1", "ramen", "ramen"]]
        assert "1 of 2 class names have underscores, which prompts keep, as 'apple_pie'" in err

    def test_a_model_of_classes(self, show, tmp_path):
        out, _ = show("imagenet-a", "--limit", 0, model="dit", data=shards(tmp_path / "d", "imagenet-a", [0, 1]))
        assert shown(out)[1] == ["1", names_of("imagenet-a")[1], "11 n11, synonym 11"]

    def test_captions(self, show, tmp_path):
        out, _ = show("winoground", "--limit", 2, data=winoground_file(tmp_path / "test.parquet"))
        assert "images: 2 of the 6" in out
        assert "null condition: evaluated; the empty prompt" in out
        assert shown(out)[:2] == [["0/0", "true", "a 0 on b"], ["0/0", "false", "b on a 0"]]
        out, _ = show("winoground", "--no-unconditional", data=tmp_path / "test.parquet")
        assert "null condition: not evaluated" in out

    def test_of_a_task_without_its_images(self, call):
        code, out, _ = call("tasks", "show", "pets", "--prompts")
        rows = [line.split("\t") for line in out.splitlines()]
        assert (code, rows[0]) == (0, ["label", "class", "prompt", "preset paper"])
        assert [row[3] for row in rows[1:]] == PUBLISHED["authors_pets"]
        assert rows[2] == ["1", "American Bulldog", *["a photo of a American Bulldog, a type of pet."] * 2]
        code, out, _ = call("tasks", "show", "cifar10")
        assert "a blurry photo of a airplane." in out
        for name in ("imagenet", "winoground"):
            code, _, err = call("tasks", "show", name, "--prompts")
            assert (code, f"evaluate {name} --show-prompts" in err) == (2, True)

    def test_no_folder_of_the_run(self, call, models):
        code, _, err = call("evaluate", "fashion-sample", "--model", models / "sd")
        assert (code, "give the folder of the run, --out" in err) == (2, True)


def distinct(names):
    """With the index of those that are there twice."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def spell(name):
    """As folders may be called, which can hold no slash."""
    return name.lower().replace(" ", "_").replace("/", "_")


def test_caption_tasks_are_all_read_elsewhere():
    """test_caption_sources.py and test_scene_tasks.py read them."""
    assert {name for name in CAPTION_TASKS if not name.startswith("scenes-")} == {"winoground", "captions"}
