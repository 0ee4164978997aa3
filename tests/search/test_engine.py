from collections import Counter, defaultdict
from itertools import count

import pytest
import torch
from gaussians import SCHEDULES, gaussian
from tolerances import ERRORS
from torch.nn import functional as F

from diffusion_classifier.denoisers import base
from diffusion_classifier.denoisers.base import Conditioning, Denoiser
from diffusion_classifier.diffusion.draws import Draws, Timesteps
from diffusion_classifier.errors import InputError
from diffusion_classifier.search import engine
from diffusion_classifier.search.engine import score
from diffusion_classifier.search.jobs import ImageJob
from diffusion_classifier.search.settings import ScoringSettings
from diffusion_classifier.search.strategies import Fixed, Sequential, Staged

STAGED = Staged((2, 5), (2, 1))


class Stub(Denoiser):
    """ε̂ = (c + 1)/10 · x_t for class c, or whatever `spoil` makes of it; keeps what it was asked."""

    family = "stub"

    def __init__(self, dtype=torch.float32, spoil=None, limit=None, out_of_memory=torch.OutOfMemoryError):
        super().__init__({"net": torch.nn.Linear(1, 1)}, SCHEDULES["linear"], "epsilon", (3, 2, 2), 2)
        self.to(torch.device("cpu"), dtype)
        self.spoil, self.limit, self.out_of_memory = spoil, limit, out_of_memory
        self.batches = []

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents

    def condition(self, classes):
        return Conditioning({"c": torch.as_tensor(classes)})

    def predict_noise(self, noisy, t, conditioning, latent_index):
        assert noisy.dtype == torch.float32
        assert noisy.shape == (len(t), 3, 2, 2)
        assert len(conditioning) == len(latent_index)
        self.batches.append((self.dtype, noisy.clone(), t, conditioning.tensors["c"], latent_index))
        return super().predict_noise(noisy, t, conditioning, latent_index)

    def forward(self, noisy, t, conditioning):
        if self.limit is not None and len(noisy) > self.limit:
            raise self.out_of_memory
        c = conditioning.tensors["c"]
        output = noisy * ((c + 1) / 10).to(noisy.dtype).view(-1, 1, 1, 1)
        return self.spoil(output, noisy, t, c) if self.spoil else output

    @property
    def sizes(self):
        return [len(index) for *_, index in self.batches]

    @property
    def rows(self):
        """Of each row of all batches: dtype, class, t, and the bits of the noisy latent that it saw."""
        for dtype, noisy, t, c, index in self.batches:
            for row, u in enumerate(index.tolist()):
                yield dtype, int(c[row]), int(t[u]), noisy[u].numpy().tobytes()


def spoil_class_1_at_500(output, _noisy, t, c):
    """Whatever the dtype."""
    return output.where(((c != 1) | (t != 500)).view(-1, 1, 1, 1), torch.nan)


def overflow_class_1(output, noisy, _t, c):
    """As a network does whose activations exceed the range of 16 bits."""
    return output if noisy.dtype == torch.float32 else output.where((c != 1).view(-1, 1, 1, 1), torch.inf)


def spoil_bright_images(output, noisy, _t, c):
    return output.where(((noisy.amax((1, 2, 3)) < 50) | (c != 1)).view(-1, 1, 1, 1), torch.nan)


def images(n):
    rng = torch.Generator().manual_seed(5)
    return [ImageJob(f"image {i}", torch.rand(3, 2, 2, generator=rng) * 2 - 1, 1000 + i) for i in range(n)]


def tables(denoiser, jobs, strategy, num_classes=3, **options):
    """Name → result."""
    settings = {name: options.pop(name) for name in ("draws", "loss", "extra_losses") if name in options}
    settings = ScoringSettings(strategy, **settings)
    results = list(score(denoiser, jobs, denoiser.condition(range(num_classes)), settings, **options))
    assert len({r.name for r in results}) == len(results)
    return {r.name: r for r in results}


def plain_loop(denoiser, job, pairs, draws, loss=F.mse_loss):
    """Errors of (class, draw) pairs, one by one."""
    errors = {}
    for c, n in pairs:
        t = draws.times(denoiser.schedule, [n], job.key)
        alpha, sigma = denoiser.schedule(t)
        noise = draws.noise(n, job.key, job.image.shape)
        noisy = (alpha * job.image + sigma * noise)[None]
        predicted = denoiser.predict_noise(noisy, t, denoiser.condition([c]), torch.tensor([0]))[0]
        errors[c, n] = float(loss(predicted, noise))
    return errors


def same(results, others):
    assert results.keys() == others.keys()
    for name, result in results.items():
        torch.testing.assert_close(result.errors, others[name].errors, equal_nan=True)
        assert torch.equal(result.active, others[name].active)
        assert torch.equal(result.t, others[name].t)
        assert result.cost.num_evaluations == others[name].cost.num_evaluations
        assert result.failure == others[name].failure


@pytest.mark.parametrize("strategy", [Fixed(4), STAGED], ids=str)
@pytest.mark.parametrize("timesteps", ["even", "random"])
@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
def test_equals_a_plain_loop(strategy, timesteps, loss):
    denoiser, draws = gaussian(num_classes=4), Draws(Timesteps(timesteps), seed=3)
    jobs = [*images(2), ImageJob("far off", torch.full((3, 2, 2), 30.0), 1)]  # errors below and above huber's threshold
    functional = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}[loss]
    results = tables(denoiser, jobs, strategy, num_classes=4, draws=draws, loss=loss, batch_size=5)
    assert len(results) == 3
    for job in jobs:
        result = results[job.name]
        pairs = (~result.errors.isnan()).nonzero().tolist()
        expected = plain_loop(denoiser, job, pairs, draws, functional)
        actual = {(c, n): float(result.errors[c, n]) for c, n in pairs}
        assert actual == pytest.approx(expected, rel=ERRORS["rtol"], abs=ERRORS["atol"])
        assert result.cost.num_evaluations == len(pairs) == (16 if strategy == Fixed(4) else 4 * 2 + 2 * 3)
        assert torch.equal(result.t, draws.times(denoiser.schedule, range(result.errors.shape[1]), job.key))
        assert torch.equal(result.active, ~result.errors[:, -1].isnan())


@pytest.mark.parametrize("strategy", [Fixed(4), STAGED], ids=str)
def test_batch_size_and_order_of_images_change_nothing(strategy):
    jobs, seen, results = images(9), [], []
    for batch_size, order in [(1, jobs), (7, jobs), (64, jobs), (7, jobs[::-1])]:
        stub = Stub()
        results.append(tables(stub, order, strategy, batch_size=batch_size))
        seen.append(sorted(stub.rows))
    for other, rows in zip(results[1:], seen[1:], strict=True):
        same(other, results[0])
        assert rows == seen[0]  # bits of the noisy latents included


@pytest.mark.parametrize("strategy", [Fixed(4), STAGED], ids=str)
@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_ahead_of_their_results_change_nothing(strategy, ahead):
    """As on a GPU, which is given work before the errors of what it does are read."""
    bad = ImageJob("bad", torch.full((3, 2, 2), 1e3), 77)
    jobs = [*images(4), bad, *images(9)[4:]]
    for batch_size in (1, 7, 64):
        results = tables(Stub(spoil=spoil_bright_images), jobs, strategy, batch_size=batch_size, ahead=ahead)
        assert "not finite" in results.pop("bad").failure
        same(results, tables(Stub(), images(9), strategy))


def test_batches_ahead_are_given_before_results_are_read():
    stub, batches_at_first_update = Stub(), []

    class Spy(Fixed):
        def update(self, state, errors):
            batches_at_first_update.append(len(stub.batches))
            return super().update(state, errors)

    tables(stub, images(6), Spy(4), batch_size=12, ahead=2)
    assert batches_at_first_update == [3, 4, 5, 6, 6, 6]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_cost_counts_shared_work_once_for_each_latent_of_a_batch(batch_size, monkeypatch):
    stub = Stub()
    monkeypatch.setattr(engine, "shared_share", lambda *_: 0.25)
    results = tables(stub, images(3), Fixed(4), num_classes=5, batch_size=batch_size)
    latents = sum(len(noisy) for _, noisy, *_ in stub.batches)
    assert sum(r.cost.num_evaluations for r in results.values()) == 60
    assert sum(r.cost.full_evaluations for r in results.values()) == pytest.approx(60 - 0.25 * (60 - latents))


def test_all_classes_of_an_image_share_their_draws():
    stub = Stub()
    tables(stub, images(4), Fixed(6), num_classes=5, batch_size=7)
    latents = defaultdict(list)
    for _, c, t, bits in stub.rows:
        latents[c].append((t, bits))
    assert len(set(latents[0])) == 4 * 6
    for c in range(5):
        assert sorted(latents[c]) == sorted(latents[0])


def test_rows_of_one_latent_lie_together_and_it_is_made_once_a_batch():
    stub = Stub()
    tables(stub, images(4), Fixed(6), num_classes=5, batch_size=7)
    for _, noisy, _, _, index in stub.batches:
        assert index.tolist() == sorted(index.tolist())
        assert index.unique().tolist() == list(range(len(noisy)))
        assert len(noisy.flatten(1).unique(dim=0)) == len(noisy)
        assert len(noisy) <= 3  # 7 rows of 5 classes


@pytest.mark.parametrize("strategy", [Fixed(5), STAGED], ids=str)
def test_batches_are_full_as_long_as_there_are_images(strategy):
    stub, sizes_at_the_end = Stub(), []

    def jobs():
        yield from images(30)
        sizes_at_the_end.append(len(stub.sizes))

    results = tables(stub, jobs(), strategy, batch_size=8)
    spent = sum(r.cost.num_evaluations for r in results.values())
    assert spent == sum(stub.sizes) == 30 * (15 if strategy == Fixed(5) else 3 * 2 + 2 * 3)
    (full,) = sizes_at_the_end
    assert full >= spent / 8 - 4
    assert set(stub.sizes[:full]) == {8}
    if strategy == Fixed(5):
        assert stub.sizes == [8] * (spent // 8) + [spent % 8]


def test_memory_does_not_grow_with_images_classes_or_draws():
    """Images are taken one by one and few are in flight; no batch holds more rows or latents than asked for."""
    stub, taken = Stub(), []

    def jobs():
        for i in count():
            taken.append(i)
            yield ImageJob(str(i), torch.zeros(3, 2, 2), i)

    results = score(stub, jobs(), stub.condition(range(30)), ScoringSettings(Staged((2, 20), (2, 1))), batch_size=8)
    for done in range(25):
        next(results)
        assert len(taken) - done <= 8
    assert max(stub.sizes) == 8
    assert max(len(noisy) for _, noisy, *_ in stub.batches) <= 8
    results.close()
    evaluated = len(stub.batches)
    assert next(results, None) is None
    assert len(stub.batches) == evaluated


def test_results_come_as_they_are_done():
    """The one that needs no second stage is not kept waiting by the others, nor is any by those not yet taken."""
    stub, taken = Stub(), []

    def jobs():
        for job in images(6):
            taken.append(job.name)
            yield job

    results = score(stub, jobs(), stub.condition(range(3)), ScoringSettings(Fixed(4)), batch_size=12)
    for i in range(6):
        assert next(results).name == f"image {i}"
        assert len(taken) == i + 1


def test_no_images_no_results():
    stub = Stub()
    assert list(score(stub, [], stub.condition(range(3)), ScoringSettings(Fixed(1)))) == []
    assert stub.batches == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_overflows_in_16_bits_is_rescued_in_float32(dtype):
    """Only the rows that overflow: the others are what they are without them, to the bit."""
    rescued, untroubled, exact = Stub(dtype, overflow_class_1), Stub(dtype), Stub()
    results = tables(rescued, images(4), STAGED, batch_size=5)
    expected, reference = tables(untroubled, images(4), STAGED, batch_size=5), tables(exact, images(4), STAGED)
    for name, result in results.items():
        assert result.failure is None
        assert torch.equal(result.errors[[0, 2]].nan_to_num(), expected[name].errors[[0, 2]].nan_to_num())
        torch.testing.assert_close(result.errors[1], reference[name].errors[1], equal_nan=True)
    again = [(d, c) for d, c, *_ in rescued.rows if d == torch.float32]
    assert set(again) == {(torch.float32, 1)}
    assert rescued.dtype == dtype
    assert next(rescued.network.parameters()).dtype == dtype


def test_where_float32_does_not_fit_the_image_fails_alone(monkeypatch):
    """And later batches are as large as before."""
    stub = Stub(torch.bfloat16, overflow_class_1)

    def no_room(module, dtype):
        if dtype == torch.float32:
            raise torch.OutOfMemoryError
        return module.to(dtype)

    monkeypatch.setattr(base, "_to", no_room)
    spoiled = tables(stub, images(2), Fixed(3), batch_size=5)
    message = "is not finite in bfloat16, and memory does not suffice for float32"
    assert all(message in result.failure for result in spoiled.values())
    assert max(stub.sizes) == 5
    stub.spoil = None
    assert all(result.failure is None for result in tables(stub, images(2), Fixed(3), batch_size=5).values())


@pytest.mark.parametrize(
    ("dtype", "dtypes"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16, nor in float32")]
)
@pytest.mark.parametrize(("class_names", "name"), [(None, "1"), (["pug", "beagle", "boxer"], "beagle")])
def test_what_is_not_finite_in_float32_either_fails_and_says_where(dtype, dtypes, class_names, name):
    draws = Draws(Timesteps.parse("250,500,750"))
    stub = Stub(dtype, spoil_class_1_at_500)
    result = tables(stub, images(1), Fixed(3), draws=draws, class_names=class_names)["image 0"]
    assert result.failure == f"the prediction for class {name} at t = 500 is not finite in {dtypes}"
    assert stub.dtype == dtype


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_failure_harms_no_other_image(batch_size):
    good, bad = images(7), ImageJob("bad", torch.full((3, 2, 2), 1e3), 77)
    draws = Draws(Timesteps.parse("100,200"))
    results = tables(
        Stub(spoil=spoil_bright_images),
        [*good[:3], bad, *good[3:]],
        Staged((1, 2), (2, 1)),
        draws=draws,
        batch_size=batch_size,
    )
    failed = results.pop("bad")
    assert "class 1 at t = 100" in failed.failure
    assert failed.cost.num_evaluations <= 3
    same(results, tables(Stub(), good, Staged((1, 2), (2, 1)), draws=draws, batch_size=64))


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.0 GiB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:12])
@pytest.mark.parametrize("strategy", [Fixed(4), STAGED], ids=str)
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(error, strategy):
    stub = Stub(limit=3, out_of_memory=error)
    same(tables(stub, images(9), strategy, batch_size=16), tables(Stub(), images(9), strategy, batch_size=16))
    tried = [size for size in stub.sizes if size > 3]  # what was once too much is not tried again
    assert tried == [16, 8, 4]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:12])
def test_out_of_memory_at_one_row_is_raised(error):
    stub = Stub(limit=0, out_of_memory=error)
    with pytest.raises(type(error)):
        tables(stub, images(2), Fixed(4), batch_size=4)
    assert stub.sizes == [4, 2, 1]


def test_other_errors_are_raised_as_they_are():
    stub = Stub(limit=0, out_of_memory=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        tables(stub, images(2), Fixed(4), batch_size=4)
    assert stub.sizes == [4]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"loss": "l3"}, "'l3' is not one of l2, l1, huber"), ({"batch_size": 0}, "at least 1; got 0")],
)
def test_bad_settings_are_refused_at_once(options, message):
    stub = Stub()
    with pytest.raises(InputError, match=message):
        tables(stub, images(1), Fixed(1), **options)


def test_candidates_alone_are_evaluated():
    """Of each image its own; what is found is the same as among all."""
    denoiser = Stub()
    conditioning = denoiser.condition([0, 1, 2, 3])
    images = torch.rand(3, 3, 2, 2)
    chosen = [None, torch.tensor([1, 3]), torch.tensor([0, 2])]
    jobs = [ImageJob(str(i), image, i, c) for i, (image, c) in enumerate(zip(images, chosen, strict=True))]
    whole = {
        r.name: r
        for r in score(
            denoiser, [ImageJob(j.name, j.image, j.key) for j in jobs], conditioning, ScoringSettings(Fixed(5))
        )
    }
    for strategy in (Fixed(5), Staged((2, 5), (2, 1)), Sequential(5)):
        for found in score(denoiser, jobs, conditioning, ScoringSettings(strategy), batch_size=7):
            among = chosen[int(found.name)]
            if among is None:
                continue
            left_out = sorted(set(range(4)) - set(among.tolist()))
            known = ~found.errors.isnan()
            assert not known[left_out].any()
            assert not found.active[left_out].any()
            torch.testing.assert_close(found.errors[known], whole[found.name].errors[known])
            assert found.cost.num_evaluations == known.sum()
            assert known[among].any(1).all()
            if found.doubt is not None:
                assert (found.doubt[left_out] == 0).all()
                assert not found.undecided[left_out].any()


@pytest.mark.parametrize("strategy", [Fixed(5), STAGED, Sequential(40, 0.2)], ids=str)
@pytest.mark.parametrize("batch_size", [4, 7, 64])
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_full_batches_change_nothing_and_waste_little(strategy, batch_size, ahead):
    """What fills them up is asked for early and never again; what is counted is what the search asked for."""
    stub = Stub()
    found = tables(stub, images(9), strategy, batch_size=batch_size, full_batches=True, ahead=ahead)
    plain = Stub()
    same(found, tables(plain, images(9), strategy, batch_size=batch_size, ahead=ahead))
    assert set(stub.sizes) == {batch_size}
    assert len(stub.sizes) <= len(plain.sizes)
    if isinstance(strategy, Sequential) and batch_size == 64 and not ahead:
        assert len(stub.sizes) <= len(plain.sizes) / 2


def test_a_guess_is_predicted_once():
    stub = Stub()
    tables(stub, images(5), Sequential(40, 0.2), batch_size=8, full_batches=True)
    rows = Counter()
    for _, noisy, t, c, index in stub.batches:
        batch = [(int(k), int(t[u]), noisy[u].numpy().tobytes()) for k, u in zip(c, index.tolist(), strict=True)]
        while len(batch) > 1 and batch[-1] == batch[-2]:  # what fills up the last batches when no guess is left
            batch.pop()
        rows.update(batch)
    assert set(rows.values()) == {1}


def test_a_guess_that_overflows_is_asked_for_again_if_it_is_wanted():
    """And harms nothing if it is not."""

    def spoil_late_draws(output, noisy, t, _c):
        late = (t.float() != 500).view(-1, 1, 1, 1)  # all but the first draw
        return output if noisy.dtype == torch.float32 else output.where(~late, torch.inf)

    stub = Stub(torch.bfloat16, spoil_late_draws)
    found = tables(stub, images(4), Sequential(20, 0.2), batch_size=16, full_batches=True)
    plain = tables(Stub(torch.bfloat16, spoil_late_draws), images(4), Sequential(20, 0.2), batch_size=16)
    assert all(r.failure is None for r in found.values())
    same(found, plain)


def test_other_losses_are_of_the_same_predictions():
    stub = Stub()
    found = tables(stub, images(6), STAGED, extra_losses=("l1", "huber"), batch_size=5)
    own = {loss: tables(Stub(), images(6), STAGED, loss=loss, batch_size=5) for loss in ("l1", "huber")}
    plain = Stub()
    same(found, tables(plain, images(6), STAGED, batch_size=5))
    assert stub.sizes == plain.sizes
    for name, result in found.items():
        for loss, table in result.extra_losses.items():
            both = ~table.isnan() & ~own[loss][name].errors.isnan()
            assert torch.equal(table.isnan(), result.errors.isnan())
            torch.testing.assert_close(table[both], own[loss][name].errors[both])
            assert both.any()


def test_a_search_that_has_nothing_to_evaluate_is_done():
    """As that of a sequential strategy with a single class, which is left from the start."""
    stub = Stub()
    jobs = images(3)
    alone = [ImageJob(job.name, job.image, job.key, candidates=torch.tensor([1])) for job in jobs[:2]]
    found = tables(stub, [*alone, jobs[2]], Sequential(8), batch_size=5)
    for job in alone:
        assert found[job.name].errors.isnan().all()
        assert found[job.name].active.tolist() == [False, True, False]
        assert found[job.name].cost.num_evaluations == 0
    same({"image 2": found["image 2"]}, tables(Stub(), jobs[2:], Sequential(8)))
