import numpy as np
import pytest
import torch
from commands import error, save
from gaussians import gaussian
from PIL import Image

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.analysis import image_figures as evidence
from diffusion_classifier.analysis import run_figures as answers
from diffusion_classifier.analysis.image_figures import errors_over_time, where, words
from diffusion_classifier.analysis.run_figures import _share_of, confused_pairs
from diffusion_classifier.diffusion.draws import Draws, Timesteps
from diffusion_classifier.errors import InputError
from diffusion_classifier.metrics import mean_interval, share_interval
from diffusion_classifier.runs.store import read_rows


def picture(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


def test_errors_over_time_are_those_of_each_noise():
    """Of Gaussians: one noise at a time, by the classifier's own hook."""
    clf = DiffusionClassifier(gaussian(3))
    errors, times = errors_over_time(clf, picture(2), ["0", "2"], num_noises=3, num_times=4, seed=5)
    assert errors.shape == (2, 3, 4)
    assert times.tolist() == sorted(times.tolist())
    for e in range(3):
        noise = Draws(seed=5).noise(e, 0, (3, 2, 2)).expand(4, 3, 2, 2)
        expected = clf.errors(picture(2), ["0", "2"], timesteps=times.tolist(), noise=noise)
        torch.testing.assert_close(errors[:, e], expected)


@pytest.mark.parametrize(("name", "loss"), [("class-unet", "l2"), ("late-unet", "l1"), ("dit", "huber")])
def test_the_map_sums_to_the_difference_of_errors(name, loss, model_folder):
    model = load_denoiser(model_folder(name), device="cpu", dtype="float32")
    image, two = picture(model.image_size), tuple(model.class_names[:2])
    shown, difference = where(model, image, two, num_draws=5, loss=loss)
    edge = model.image_size if model.in_pixels else model.latent_shape[-1]
    assert (shown.size, difference.shape) == ((model.image_size,) * 2, (edge, edge))
    draws, schedule = Draws(), model.schedule
    noise = torch.stack([draws.noise(n, 0, model.latent_shape) for n in range(5)])
    times = draws.times(schedule, range(5), 0).tolist()
    clf = DiffusionClassifier(load_denoiser(model_folder(name), device="cpu", dtype="float32"))
    first, second = clf.errors(image, two, timesteps=times, noise=noise, loss=loss).double().mean(1)
    assert float(difference.mean()) == pytest.approx(float(second - first), rel=1e-3, abs=1e-7)


def test_the_map_has_the_weights_of_the_answer(model_folder):
    model = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
    image, two = picture(model.image_size), tuple(model.class_names[:2])
    draws, weights = Draws(Timesteps.parse("even:0.2-0.8"), seed=3), (1.0, 4.0, 0.0, 2.0)
    _, difference = where(model, image, two, num_draws=5, draws=draws, weights=weights)
    noise = torch.stack([draws.noise(n, 0, model.latent_shape) for n in range(5)])
    times = draws.times(model.schedule, range(5), 0)
    errors = DiffusionClassifier(model).errors(image, two, timesteps=times.tolist(), noise=noise).double()
    share = np.interp(times.double() / model.schedule.num_timesteps, np.linspace(0, 1, 4), weights)
    expected = ((errors[1] - errors[0]).numpy() * share).sum() / share.sum()
    assert float(difference.mean()) == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_map_of_a_text_model_in_pixels(model_folder):
    model = load_denoiser(model_folder("if"), device="cpu", dtype="float32")
    _, difference = where(model, picture(model.image_size), ("a cat", "a dog"), num_draws=1)
    assert difference.shape == (model.image_size,) * 2


def test_draws_of_one_image_are_not_independent():
    right = torch.rand(60, 1, generator=torch.Generator().manual_seed(0)) < 0.7
    everywhere = torch.ones(60, 13, dtype=torch.bool)
    assert _share_of(right, everywhere[:, :1]) == share_interval(right[:, 0])
    found = _share_of(right.expand(60, 13), everywhere)  # thirteen times the same
    assert found == pytest.approx(mean_interval(right[:, 0].float()))
    some = everywhere.clone()
    some[10:, 1:], some[:10] = False, False
    assert _share_of(right.expand(60, 13), some) == share_interval(right[10:, 0])


def test_the_map_shows_where_the_classes_differ():
    """Two Gaussians that differ in one corner, and an image of the first."""
    model = gaussian(2, size=8)
    model.means, model.variances = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.1)
    model.means[1, :, :3, :3] = 0.8
    grey = Image.fromarray(np.full((8, 8, 3), 127, np.uint8))
    _, difference = where(model, grey, ("0", "1"), num_draws=32)
    inside = np.zeros((8, 8), bool)
    inside[:3, :3] = True
    assert difference[inside].min() > 10 * np.abs(difference[~inside]).max()


def test_words_are_worth_what_the_error_rises_without_them(model_folder):
    clf = DiffusionClassifier.from_pretrained(model_folder("sd-epsilon"), device="cpu", dtype="float32")
    found = words(clf, picture(64), "a dark bag", num_draws=6)
    assert [word for word, *_ in found] == ["a", "dark", "bag"]
    times = Draws().times(clf.denoiser.schedule, range(6), 0).tolist()
    prompts = ["a dark bag", "dark bag", "a bag", "a dark"]
    errors = clf.errors(picture(64), prompts, timesteps=times).double()
    for (_, rise, spread), other in zip(found, errors[1:], strict=True):
        assert rise == pytest.approx(float((other - errors[0]).mean()))
        assert spread == pytest.approx(float((other - errors[0]).std() / 6**0.5))


class TestCommands:
    def test_images_of_a_run_of_another_split(self, call, model, tmp_path):
        for split in ("train", "validation"):
            for i, name in enumerate(("dark", "light") * 3):
                save(tmp_path / "data" / split / name / f"{i}.png", 40, i)
        run, out = tmp_path / "run", tmp_path / "confused.png"
        options = ("--split", "validation", "--strategy", "fixed:4", "--device", "cpu", "--out", run)
        assert call("evaluate", tmp_path / "data", "--model", model, *options)[0] == 0
        assert call("figure", "confused", run, "-o", out)[0] == 2
        assert call("figure", "confused", run, "--split", "validation", "-o", out)[0] == 0
        assert out.stat().st_size > 0

    @pytest.fixture
    def photo(self, tmp_path):
        save(tmp_path / "photo.png", 128)
        return tmp_path / "photo.png"

    def test_of_an_image(self, call, model, photo, tmp_path):
        few = ("--model", model, "--device", "cpu", "--labels", "dark,light")
        for command in (("errors", "--times", 3), ("race", "--draws", 4), ("where", "--draws", 2)):
            file = tmp_path / f"{command[0]}.png"
            code, out, err = call("figure", command[0], photo, *few, "-o", file, *command[1:])
            assert (code, out, f"drawn to {file}" in err) == (0, "", True)
            assert min(Image.open(file).size) > 300

    def test_of_words(self, call, model_folder, photo, tmp_path):
        few = ("--model", model_folder("sd-epsilon"), "--device", "cpu", "--draws", 2)
        code, _, err = call("figure", "words", photo, *few, "--prompt", "a dark bag", "-o", tmp_path / "w.png")
        assert (code, "drawn to" in err) == (0, True)

    def test_of_a_run(self, call, model, photos, tmp_path):
        run = tmp_path / "run"
        call("evaluate", photos, "--out", run, "--model", model, "--strategy", "fixed:4", "--store-errors")
        for kind in ("times", "scaling", "reliability", "confusion", "confused"):
            code, _, err = call("figure", kind, run, "-o", tmp_path / f"{kind}.png")
            assert (code, "drawn to" in err) == (0, True), err
            assert min(Image.open(tmp_path / f"{kind}.png").size) > 200
        rows = read_rows(run).to_pylist()
        wrong = [row for row in rows if row["truth"] != row["prediction"]]
        pairs = confused_pairs(run)
        assert sum(len(ids) for *_, ids in pairs) == len(wrong) > 0
        assert [len(ids) for *_, ids in pairs] == sorted((len(ids) for *_, ids in pairs), reverse=True)
        by_id = {row["id"]: row for row in rows}
        for truth, answer, ids in pairs:
            assert {(by_id[i]["truth"], by_id[i]["prediction"]) for i in ids} == {(truth, answer)}

    def test_bad_input(self, call, model, photo, photos, tmp_path):
        call("evaluate", photos, "--out", tmp_path / "run", "--model", model, "--strategy", "fixed:1", "--limit", 3)
        here, out = ("--model", model, "--device", "cpu"), ("-o", tmp_path / "x.png")
        for arguments, message in (
            (("where", photo, "--labels", "dark,grey,light", *here, *out), "two labels are compared; got 3"),
            (("words", photo, "--prompt", "a bag", *here, *out), "knows classes and reads no words"),
            (("words", photo, "--prompt", "bag", *here, *out), "at least two words"),
            (("times", tmp_path / "run", *out), "holds no errors"),
            (("scaling", tmp_path / "run", *out), "holds no errors"),
            (("confusion", photos, *out), "is not the folder of a run"),
            (("race", tmp_path / "none.png", *here, *out), "none.png"),
            (("race", photo, *here, "-o", tmp_path / "x.unknown"), "cannot be drawn"),
        ):
            code, _, err = call("figure", *arguments)
            assert (code, message in error(err)) == (2, True), err


def test_accuracy_of_single_draws(call, model, photos, tmp_path, monkeypatch):
    """By numpy, draw by draw: seven even times are in seven bins."""
    run, drawn = tmp_path / "run", {}
    call("evaluate", photos, "--out", run, "--model", model, "--strategy", "fixed:7", "--store-errors")
    monkeypatch.setattr(answers, "save", lambda figure, _: drawn.update(ax=figure.axes[0]))
    answers.draw_single_times(run, tmp_path / "x.png")
    rows = read_rows(run).to_pylist()
    names = ["dark", "grey", "light"]
    errors, times = (np.array([row[name] for row in rows]) for name in ("errors", "timesteps"))
    truth = np.array([names.index(row["truth"]) for row in rows])
    expected = [(errors[:, :, n].argmin(1) == truth).mean() for n in np.argsort(times[0])]
    np.testing.assert_allclose(drawn["ax"].lines[0].get_ydata(), expected)


def test_a_map_needs_a_loss_of_places():
    with pytest.raises(InputError, match="the loss of a map is one of"):
        where(gaussian(2), picture(2), ("0", "1"), loss="vlb")


def test_a_race_is_of_running_means(tmp_path, monkeypatch):
    """Ranks by numpy, of the lines that are drawn."""
    errors = torch.rand(7, 20, generator=torch.Generator().manual_seed(0))
    drawn = {}
    monkeypatch.setattr(evidence, "save", lambda figure, _: drawn.update(ax=figure.axes[0]))
    evidence.draw_race(errors, [f"class {k}" for k in range(7)], tmp_path / "race.png")
    means = errors.double().numpy().cumsum(1) / np.arange(1, 21)
    named = {line.get_label(): line.get_ydata() for line in drawn["ax"].lines if line.get_label().startswith("class")}
    best = np.argsort(means[:, -1])[: evidence.SHOWN]
    assert set(named) == {f"class {k}" for k in best}
    for k in best:
        np.testing.assert_array_equal(named[f"class {k}"], [(means[:, n] < means[k, n]).sum() + 1 for n in range(20)])
