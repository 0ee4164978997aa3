import json

import pytest
import torch
from gaussians import gaussian

from diffusion_classifier.denoisers import load_denoiser, tuning
from diffusion_classifier.denoisers.tuning import Tuning, knee, measure, seconds_of_call, tune


def machine(fixed, per_row, limit=10**9, error=None):
    """Simulate calls that take a fixed time plus a time per row, up to a memory limit, and record their sizes."""
    asked = []

    def seconds(rows):
        asked.append(rows)
        if rows > limit:
            raise error or torch.OutOfMemoryError("out of memory")
        return fixed + per_row * rows

    seconds.asked = asked
    return seconds


class TestKnee:
    @pytest.mark.parametrize(("fixed", "per_row", "expected"), [(0, 1e-3, 8), (1e-2, 1e-3, 256), (1e-3, 1e-3, 16)])
    def test_is_the_smallest_near_the_best(self, fixed, per_row, expected):
        """With a fixed share, the rate is B / (fixed + B·per_row): 95 % of that of the largest tried."""
        assert knee(machine(fixed, per_row)) == expected

    def test_slow_networks_are_not_tried_further(self):
        slow = machine(5.0, 4.0)
        assert knee(slow) == 2
        assert slow.asked == [1, 2]

    def test_a_rate_that_no_longer_grows_ends_the_search(self):
        busy = machine(0.01, 0.1)
        assert knee(busy) == 8
        assert busy.asked == [1, 2, 4, 8]

    @pytest.mark.parametrize("error", [None, RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
    def test_memory_ends_the_search(self, error):
        small = machine(1.0, 1e-5, limit=8, error=error)
        assert knee(small) == 8
        assert small.asked == [1, 2, 4, 8, 16]

    def test_not_even_one_row(self):
        with pytest.raises(torch.OutOfMemoryError):
            knee(machine(1, 1, limit=0))

    def test_other_errors_are_raised(self):
        with pytest.raises(RuntimeError, match="shapes"):
            knee(machine(1e-3, 1e-6, limit=8, error=RuntimeError("shapes do not fit")))

    def test_few_rows_are_chosen_only_where_more_are_slower(self):
        """Timing noise may make one row look best."""
        times = {1: 0.9, 2: 2.0, 4: 4.0, 8: 8.0, 16: 16.0}
        assert knee(times.__getitem__) == 8
        assert knee((times | {2: 1.6, 4: 8.0}).__getitem__) == 2

    def test_a_rate_that_falls_ends_the_search(self):
        asked = []
        assert knee(lambda rows: asked.append(rows) or (1e-3 if rows <= 16 else 1e-3 * rows)) == 16
        assert asked == [1, 2, 4, 8, 16, 32]


class TestRemembered:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return tmp_path / "diffusion-classifier" / "tuning.json"

    @pytest.fixture
    def measured(self, monkeypatch):
        calls = []
        monkeypatch.setattr(tuning, "measure", lambda *_: calls.append(1) or Tuning(32 * len(calls)))
        return calls

    def load(self, model_folder, name="class-unet", dtype="float32"):
        denoiser = load_denoiser(model_folder(name), device="cpu", dtype=dtype)
        return denoiser, denoiser.condition(range(3))

    def test_once_for_a_network_and_dtype(self, model_folder, measured, cache):
        assert [tune(*self.load(model_folder)) for _ in range(2)] == [32, 32]
        assert tune(*self.load(model_folder, dtype="bfloat16")) == 64
        assert tune(*self.load(model_folder, "dit")) == 96
        assert tune(*self.load(model_folder)) == 32
        assert len(measured) == 3
        assert sorted(t["batch_size"] for t in json.loads(cache.read_text()).values()) == [32, 64, 96]
        assert list(cache.parent.iterdir()) == [cache]

    def test_wherever_the_network_was_loaded_from(self, model_folder, measured):
        """Configs of diffusers state where they came from, and which values were defaults, in random order."""
        denoiser, conditioning = self.load(model_folder)
        for note in ({"_name_or_path": "elsewhere"}, {"_use_default_values": ["b", "a"]}):
            tune(denoiser, conditioning)
            denoiser.network.register_to_config(**note)
        tune(denoiser, conditioning)
        assert len(measured) == 1

    @pytest.mark.parametrize(
        "content", ["", "no json", "[1]", '{"a": "b"}', "null", '{"KEY": 0}', '{"KEY": {"batch_size": 0}}']
    )
    @pytest.mark.usefixtures("measured")
    def test_a_broken_file_is_measured_anew(self, model_folder, cache, content):
        tune(*self.load(model_folder))
        (key,) = json.loads(cache.read_text())
        cache.write_text(content.replace("KEY", key))
        assert tune(*self.load(model_folder)) == 64

    @pytest.mark.usefixtures("measured")
    def test_where_nothing_can_be_written_it_is_measured_each_time(self, model_folder, tmp_path):
        (tmp_path / "diffusion-classifier").write_text("no folder")
        assert [tune(*self.load(model_folder)) for _ in range(2)] == [32, 64]

    def test_a_closed_form_needs_none(self, measured, cache):
        denoiser = gaussian(num_classes=3)
        assert tune(denoiser, denoiser.condition(range(3))) == 64
        assert not measured
        assert not cache.exists()


class TestLayout:
    @pytest.mark.parametrize("faster", [True, False])
    def test_the_faster_one_is_kept(self, model_folder, monkeypatch, tmp_path, faster):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        denoiser = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
        kernel = denoiser.network.conv_in.weight

        def seconds(*_, **__):
            last = kernel.is_contiguous(memory_format=torch.channels_last)
            return 1.0 if last == faster else 2.0

        monkeypatch.setattr(tuning, "seconds_of_call", seconds)
        monkeypatch.setattr(tuning, "measure", measure)
        conditioning = denoiser.condition(range(3))
        assert measure(denoiser, conditioning).channels_last == faster
        tune(denoiser, conditioning)
        assert kernel.is_contiguous(memory_format=torch.channels_last) == faster
        again = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
        tune(again, conditioning)  # from the file
        assert again.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last) == faster

    def test_memory_may_not_suffice_for_a_copy(self, model_folder, monkeypatch):
        denoiser = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")

        def seconds(*_, **__):
            if denoiser.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
                raise torch.OutOfMemoryError("out of memory")
            return 1.0

        monkeypatch.setattr(tuning, "seconds_of_call", seconds)
        assert not measure(denoiser, denoiser.condition(range(3))).channels_last

    @pytest.mark.parametrize("name", ["class-unet", "sd-epsilon", "dit"])
    def test_predictions_are_the_same(self, model_folder, name):
        denoiser = load_denoiser(model_folder(name), device="cpu", dtype="float32")
        conditioning = denoiser.condition(["a", "b"] if denoiser.class_names is None else range(2))
        noisy, t = torch.randn(2, *denoiser.latent_shape), denoiser.schedule.timesteps(torch.tensor([0.3, 0.7]))
        latent_index = torch.tensor([0, 1])
        before = denoiser.predict_noise(noisy, t, conditioning, latent_index)
        tuning.set_layout(denoiser, True)
        after = denoiser.predict_noise(noisy, t, conditioning, latent_index)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_a_call_is_of_so_many_rows(model_folder, monkeypatch, rows):
    denoiser = load_denoiser(model_folder("sd-epsilon"), device="cpu", dtype="float32")
    seen = []
    forward = denoiser.forward
    monkeypatch.setattr(denoiser, "forward", lambda *a: seen.append(len(a[0])) or forward(*a))
    assert seconds_of_call(denoiser, denoiser.condition(["a", "b", "c"]), rows, calls=2) > 0
    assert seen == [rows] * 3
