"""What the documentation tells to type works: commands are run where they stand, or marked with the reason why not.

A block of commands is run, page by page from the first to the last, unless the line before it says
`<!-- not run: REASON -->`; of those that are not, the options are checked all the same.
"""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from commands import parse, save
from contrastive_builders import build as build_contrastive
from mkdocs.commands.build import build
from mkdocs.config import load_config
from typer.testing import CliRunner

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis.speed import num_evaluations
from diffusion_classifier.baselines.contrastive import Contrastive
from diffusion_classifier.cli import app
from diffusion_classifier.data.fashion import load_sample
from diffusion_classifier.data.images import load_image
from diffusion_classifier.search.strategies import parse_strategy, replay
from diffusion_classifier.tasks import TASKS
from diffusion_classifier.tasks.scene_tasks import open_pairs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "src").glob("*/zoo/*/README.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```console\n(?P<text>.*?)```", re.DOTALL)
COMMAND = re.compile(r"^\$ (diffusion-classifier .*)$", re.MULTILINE)


def blocks(page):
    """Why a block is not run, and its commands, without what is said of them."""
    for found in BLOCK.finditer(page.read_text("utf-8")):
        yield found["why"], [re.sub(r"\s+#\s.*$", "", line) for line in COMMAND.findall(found["text"])]


FEWER = re.compile(r"(--draws|--limit|fixed:)( ?)(\d+)")
"""Numbers that only make a command take longer."""


def arguments(line, most=10**9):
    """Of the command, and the file that its output goes to."""
    words = shlex.split(FEWER.sub(lambda m: f"{m[1]}{m[2]}{min(most, int(m[3]))}", line))[1:]
    if ">" not in words:
        return words, None
    return words[: words.index(">")], Path(words[words.index(">") + 1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_commands_have_such_options(page):
    for _, lines in blocks(page):
        for line in lines:
            parse(arguments(line)[0])


def test_a_wrong_option_is_found():
    with pytest.raises(Exception, match="No such option"):
        parse(["classify", "x.png", "--modell", "fashion"])


@pytest.fixture
def desk(tmp_path, monkeypatch, model_folder):
    """A folder with the files that the documentation speaks of."""
    monkeypatch.chdir(tmp_path)
    for name, grey in (("cat", 60), ("dog", 190)):
        for i in range(6):
            save(tmp_path / "photos" / name / f"{i}.png", grey, i)
            save(tmp_path / "unsorted" / f"{name}-{i}.png", grey, i + 6)
    by_label = {sample.label: sample.image for sample in load_sample(100)}
    for file, label in (("boot", "Ankle boot"), ("shirt", "Shirt"), ("sneaker", "Sneaker")):
        by_label[label].save(f"{file}.png")
    pairs = open_pairs()
    pairs.read(0).save("photo.png")
    pairs.read(2).save("scene.png")
    save(tmp_path / "rex.jpg", 128, 0)
    Path("captions.txt").write_text("a cat\n" * 6 + "a dog\n" * 6)
    shutil.copytree(model_folder("sd-epsilon"), "path/to/pipeline")


RUN = [page for page in PAGES if any(why is None and lines for why, lines in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
@pytest.mark.usefixtures("desk")
def test_commands_work_one_after_the_other(page):
    for why, lines in blocks(page):
        for line in lines if why is None else ():
            words, file = arguments(line, most=16)
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{line}: {result.exception or result.output}"
            if file is not None:
                file.write_text(result.stdout)


PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/captions.md", "docs/composition.md"])
@pytest.mark.usefixtures("desk")
def test_lines_of_python_work(page, monkeypatch, tmp_path):
    """Of models of the hub, tiny ones in their places; page.md's are those of tests/page."""
    build_contrastive("clip", tmp_path / "clip")
    places = {"stable-diffusion-v1-5/stable-diffusion-v1-5": "path/to/pipeline"}
    places["openai/clip-vit-base-patch32"] = tmp_path / "clip"
    for kind in (DiffusionClassifier, Contrastive):
        load = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda name, load=load: load(places.get(name, name)))
    pictures = [load_image(name).image for name in ("rex.jpg", "boot.png")]
    names = {"breeds": [f"{i}" for i in range(24)], "images": pictures, "image": pictures[0], "captions": ["a", "b"]}
    if page == "docs/captions.md":
        names["clf"] = DiffusionClassifier.from_pretrained("path/to/pipeline")
    for block in PYTHON.findall((ROOT / page).read_text("utf-8")):
        exec(block.replace("a photo of a {}, a type of pet.", "a {}"), names)  # tiny models read 24 tokens


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("own_*.py")), ids=lambda path: path.stem)
def test_programs_work(program, capsys):
    state = torch.get_rng_state()
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out
    assert torch.equal(torch.get_rng_state(), state)


def test_an_own_denoiser_knows_light_from_dark():
    program = runpy.run_path(str(ROOT / "examples/own_denoiser.py"))
    classifier = program["DiffusionClassifier"](program["MyDenoiser"](program["MyNetwork"]()), batch_size=32)
    for brightness, label in ((0.1, "dark"), (0.5, "grey"), (0.9, "light")):
        assert classifier.classify(torch.full((3, 16, 16), brightness))[0].label == label


def test_an_own_strategy_halves_and_keeps_the_best():
    halving = runpy.run_path(str(ROOT / "examples/own_strategy.py"))["Halving"]()
    noise = torch.rand(8, 16, generator=torch.Generator().manual_seed(0)) / 2
    table = torch.arange(8.0)[:, None].expand(8, 16) + noise
    state = replay(halving, table)
    assert state.active.nonzero().flatten().tolist() == [0, 1]
    assert (~state.errors.isnan()).sum(1).tolist() == [8, 8, 4, 4, 2, 2, 2, 2]
    assert replay(halving, table[:2]).active.tolist() == [True, True]


@pytest.mark.slow
def test_pages_are_built_without_a_warning(tmp_path):
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(config)
    assert "log_posterior" in (tmp_path / "site/api.html").read_text()
    assert "scenes-samples.png" in (tmp_path / "site/cards/scenes.html").read_text()
    asked = re.compile(r"<(?:link|script|img)[^>]+(?:href|src)=.?https?://", re.IGNORECASE)
    for page in (tmp_path / "site").rglob("*.html"):
        assert not asked.search(page.read_text()), page  # of other machines


def test_what_the_paper_would_cost_is_what_its_presets_say():
    row = r"\| `evaluate (\S+) --preset paper`.*? \| ([\d.]+) % \| ([\d,]+) \|"
    rows = re.findall(row, (ROOT / "docs/paper.md").read_text("utf-8"))
    assert len(rows) == sum("paper" in task.presets for task in TASKS.values())
    for name, accuracy, evaluations in rows:
        preset = TASKS[name].presets["paper"]
        assert float(accuracy) == preset.accuracy
        wanted = num_evaluations(parse_strategy(preset.strategy), TASKS[name].num_classes)
        assert wanted == pytest.approx(int(evaluations.replace(",", "")), rel=0.01)  # the authors' are rounded
    row = r"\| `evaluate (\S+) --preset paper-dit` \| [\d.]+ % \| ([\d,]+) \| ([\d,]+) \| (\d+) \|"
    rows = re.findall(row, (ROOT / "docs/paper.md").read_text("utf-8"))
    assert len(rows) == sum("paper-dit" in task.presets for task in TASKS.values())
    for name, *given in rows:
        evaluations, images, hours = (int(number.replace(",", "")) for number in given)
        preset = TASKS[name].presets["paper-dit"]
        assert evaluations == num_evaluations(parse_strategy(preset.strategy), TASKS[name].num_classes)
        assert images == preset.num_images
        assert hours == round(images * evaluations / 200 / 3600)
