"""Vowels by waves in a plate."""

from npde_fem import datasets, recognition
from npde_fem.recognition.vowels import DT

import numpy as np
import pytest
import torch

SMALL = {"points": 44, "samples": 200}


def tones(each=10, rate=10_000, seed=0):
    """Return recordings of three classes that differ in pitch only, with noise."""
    rng, seconds = np.random.default_rng(seed), np.arange(0, 0.03, 1 / rate)
    labels = np.repeat(np.arange(3), each)
    signals = [
        np.sin(2 * np.pi * (400 * 2**k * rng.uniform(0.93, 1.07) * seconds + rng.uniform()))
        + 0.05 * rng.standard_normal(len(seconds))
        for k in labels
    ]
    return datasets.Vowels(signals, labels, ("low", "middle", "high"), [f"m{i:02d}" for i in range(len(labels))], rate)


@pytest.fixture(scope="module")
def recordings():
    try:
        return datasets.vowels()
    except datasets.DataUnavailable as error:
        pytest.skip(str(error))


# -- sounds and divisions ----------------------------------------------------------------------------------------


def test_sounds_keep_their_pitch_at_another_rate_and_have_mean_square_one():
    seconds = np.arange(0, 0.2, 1 / 16_000)
    made = datasets.Vowels([3 * np.sin(2 * np.pi * 1000 * seconds)], np.array([0]), ("a",), ["m01"], 16_000)
    (sound,) = recognition.sounds(made, 10_000, 1000, torch.float64)[..., 0]
    spectrum = torch.fft.rfft(sound).abs()
    assert int(spectrum.argmax()) * 10_000 / 1000 == 1000
    assert float(sound.square().mean()) == pytest.approx(1.0)


def test_short_sounds_end_in_silence():
    made = datasets.Vowels([np.ones(50)], np.array([0]), ("a",), ["m01"], 100)
    (sound,) = recognition.sounds(made, 100, 80)[..., 0]
    assert torch.equal(sound, torch.tensor([1.0] * 50 + [0.0] * 30))


def test_folds_divide_every_class_evenly():
    labels = np.repeat([0, 1, 2], [10, 13, 25])
    fold = recognition.folds(labels, 5, seed=1)
    counts = np.array([[np.sum((fold == k) & (labels == c)) for k in range(5)] for c in range(3)])
    assert counts.sum() == 48 and np.all(np.ptp(counts, axis=1) <= 1)
    assert np.array_equal(fold, recognition.folds(labels, 5, seed=1))
    assert not np.array_equal(fold, recognition.folds(labels, 5, seed=2))
    for count in (1, 11):
        with pytest.raises(ValueError, match="2 to 10"):
            recognition.folds(labels, count)


# -- the plate ---------------------------------------------------------------------------------------------------


def test_speed_is_that_of_two_materials_and_of_the_empty_plate_near_source_and_probes():
    plate = recognition.Plate(40, 0.4, seed=3, dtype=torch.float64)
    with torch.no_grad():
        plate.raw_speed.copy_(10 * torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))
        speed = plate.speed.numpy()
    assert 0.4 <= speed.min() < 0.401 and speed.max() == 1.0
    assert np.all(speed[~plate.region.numpy().astype(bool)] == 1.0)
    assert np.mean((speed > 0.41) & (speed < 0.99)) < 0.35
    at = np.concatenate([plate.sources.T.numpy(), plate.probes.numpy()]).reshape(-1, 40, 40).sum(0)
    assert not np.any(plate.region.numpy()[at > 0])


def test_gradient_of_the_density_by_a_taylor_test():
    plate = recognition.Plate(34, dtype=torch.float64)
    x = recognition.sounds(tones(1), samples=120, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])

    def loss():
        return torch.nn.functional.cross_entropy(plate(x), labels)

    start = plate.raw_speed.detach().clone()
    way = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    begun = loss()
    begun.backward()
    slope = float((plate.raw_speed.grad * way).sum())
    rests = []
    for h in (1e-3, 5e-4, 2.5e-4):
        with torch.no_grad():
            plate.raw_speed.copy_(start + h * way)
            rests.append(abs(float(loss()) - float(begun.detach()) - h * slope))
    assert abs(slope) > 1e-6
    assert np.all(np.log2(np.array(rests[:-1]) / rests[1:]) > 1.9)


def test_finite_differences_are_the_plate_and_elements_are_near():
    plate = recognition.Plate(34, slow=0.7, radius=3.0, dtype=torch.float64)
    (sound,) = recognition.sounds(tones(1), samples=100, dtype=torch.float64)[:1]
    with torch.no_grad():
        own = torch.softmax(plate(sound[None])[0], 0).numpy()
    fd = recognition.sound_by_pde(plate, sound, "fd", refine=1)
    fine, fem = (recognition.sound_by_pde(plate, sound, method, refine=2) for method in ("fd", "fem"))
    assert np.abs(fd - own).max() < 1e-12
    assert 1e-9 < np.abs(fem - fine).max() < 0.01 and np.abs(fine - own).max() < 0.03
    assert np.ptp(own) > 0.1


def test_what_learns_tones():
    trained = recognition.recognise_vowels(tones(), epochs=8, divisions=[0, 1], progress=False, **SMALL)
    passive = recognition.recognise_vowels(tones(), "pseudoinverse", divisions=[0], probes=8, progress=False, **SMALL)
    assert trained.accuracies.min() >= 0.8 and trained.confusion.sum() == 12
    assert passive.accuracy >= 0.8 and passive.trained[0].fit.model[0].windows == 2
    losses = [e.loss for e in trained.trained[0].fit.history]
    assert losses[-1] < 0.6 * losses[0]
    assert trained.examples.shape == (3, 200, 1)
    assert trained.spread == pytest.approx(np.std(trained.accuracies, ddof=1)) and np.isnan(passive.spread)


def test_lbfgs_lowers_the_loss_of_a_plate():
    found = recognition.recognise_vowels(tones(), "lbfgs", divisions=[0], epochs=3, progress=False, **SMALL)
    losses = [e.loss for e in found.trained[0].fit.history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]


def test_recordings_by_a_passive_plate(recordings):
    assert len(recordings.signals) == 279 and np.bincount(recordings.labels).tolist() == [93, 93, 93]
    found = recognition.recognise_vowels(
        recordings, "pseudoinverse", divisions=[0], points=40, samples=500, probes=30, progress=False
    )
    assert found.accuracy > 0.8 and found.confusion.sum(1).tolist() == [19, 19, 19]


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learner": "sgd"}, "'sgd' given; adam, lbfgs, pde, pseudoinverse allowed"),
        ({"divisions": [5]}, r"divisions \[5\] given; numbers from 0 to 4"),
        ({"divisions": []}, "numbers from 0 to 4"),
        ({"points": 20}, "points = 20 given; an integer from 32"),
        ({"samples": 0}, "samples = 0 given; a positive integer"),
        ({"slow": 1.5}, "slow = 1.5 given; a speed between 0 and 1"),
        ({"radius": 0.0}, "radius = 0.0 given; a positive number"),
        ({"learner": "pseudoinverse", "windows": 0}, "windows = 0 given"),
        ({"count": 20}, "2 to 10"),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(ValueError, match=message):
        recognition.recognise_vowels(tones(), **({"progress": False} | SMALL | given))


def test_bad_input_of_another_discretisation():
    plate, sound = recognition.Plate(34), torch.zeros(4, 1)
    with pytest.raises(ValueError, match="'spectral' given; 'fd' or 'fem' allowed"):
        recognition.sound_by_pde(plate, sound, "spectral")
    with pytest.raises(ValueError, match="refine = 0 given"):
        recognition.sound_by_pde(plate, sound, refine=0)


def test_step_is_stable():
    assert 1 / np.sqrt(2) > DT == recognition.Plate(34).dt
