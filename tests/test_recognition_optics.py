"""Digits by light in phase masks."""

from npde_fem import datasets, recognition

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def mnist():
    images, labels = datasets.mnist5k()
    return images[::10], labels[::10]


def optics(**given):
    return recognition.Diffraction(**({"neurons": 8, "layers": 2, "distance": 3.0, "dtype": torch.float64} | given))


def test_light_goes_on_as_a_gaussian_beam():
    """psi(z) of waist w in the units of the module: exp(-r^2 / (w^2 q)) / q with q = 1 + i distance / (pi w^2)."""
    one = optics(neurons=32, distance=6.0, fineness=4)
    x = np.arange(one.points) / one.fineness - one.width / 2
    square, waist = np.add.outer(x**2, x**2), 2.0
    q = 1 + 1j * one.distance / (np.pi * waist**2)
    begun = torch.tensor(np.exp(-square / waist**2) + 0j)
    found = one._onwards(begun[None])[0].numpy()
    assert np.abs(found - np.exp(-square / (waist**2 * q)) / q).max() < 1e-8
    assert abs(q) > 1.1


def test_power_is_one_and_kept_from_mask_to_mask():
    one = optics(neurons=16, layers=1)
    light = one.light(torch.rand(3, 6, 9, dtype=torch.float64))
    for field in (light, one._onwards(light)):
        assert torch.allclose(field.abs().square().sum((1, 2)) / one.fineness**2, torch.ones(3, dtype=torch.float64))


def test_detectors_are_squares_apart_from_each_other_inside_the_aperture():
    one = optics(neurons=32, classes=10)
    corners, edge = one.squares(), 4.0
    assert len(corners) == 10 and corners.min() >= 8 and corners.max() + edge <= 40
    for k in range(10):
        for j in range(k):
            assert np.abs(corners[k] - corners[j]).max() > edge
    flat = one.energies(torch.ones(1, one.points, one.points, dtype=torch.complex128))[0]
    assert torch.allclose(flat, torch.full((10,), edge**2, dtype=torch.float64))


def test_dark_pictures_have_finite_outputs():
    assert torch.isfinite(optics()(torch.zeros(2, 8, 8))).all()


def test_gradient_of_the_phases_by_a_taylor_test():
    one, pictures = optics(seed=1), torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 5, 9])

    def loss():
        return torch.nn.functional.cross_entropy(one(pictures), labels)

    start = one.phases.detach().clone()
    way = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    begun = loss()
    begun.backward()
    slope, rests = float((one.phases.grad * way).sum()), []
    for h in (1e-3, 5e-4, 2.5e-4):
        with torch.no_grad():
            one.phases.copy_(start + h * way)
            rests.append(abs(float(loss()) - float(begun.detach()) - h * slope))
    assert abs(slope) > 1e-3 and np.all(np.log2(np.array(rests[:-1]) / rests[1:]) > 1.9)


@pytest.mark.parametrize(("method", "degree"), [("fd", 1), ("fem", 1), ("fem", 2)])
def test_finite_differences_and_elements_tend_to_the_same_light(method, degree):
    one = optics(neurons=8, distance=2.0)
    with torch.no_grad():
        one.phases.copy_(torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2)))
    row = torch.linspace(0, 1, 8)
    picture = torch.outer(row, 1 - row**2)
    with torch.no_grad():
        fine = torch.softmax(one.refined(8)(picture[None])[0], 0).numpy()
    errors = [
        np.abs(recognition.light_by_pde(one, picture, method, refine=n, degree=degree, steps=24 * n) - fine).max()
        for n in (2, 4)
    ]
    assert np.ptp(fine) > 0.1 and errors[1] < 0.02
    assert np.log2(errors[0] / errors[1]) > 1.7


def test_refined_masks_are_the_same_masks():
    one = recognition.Diffraction(16, 3, 4.0, seed=0)
    fine = one.refined(3)
    assert torch.equal(fine.phases, one.phases.double()) and fine.points == 3 * one.points
    coarse = one.splines.double() @ one.phases[1].double() @ one.splines.double().T
    assert torch.allclose((fine.splines @ fine.phases[1] @ fine.splines.T)[::3, ::3], coarse, atol=1e-5)


def test_masks_learn_digits(mnist):
    found = recognition.recognise_optics(*mnist, epochs=6, neurons=16, distance=8.0, progress=False)
    assert found.accuracy > 0.55 and found.confusion.sum() == 100
    losses = [e.loss for e in found.trained[0].fit.history]
    assert losses[-1] < 0.75 * losses[0]
    passive = recognition.recognise_optics(*mnist, "pseudoinverse", pixels=16, progress=False)
    assert passive.accuracy > 0.7
    with pytest.raises(ValueError, match="agreement: a trained Sequential given"):
        recognition.agreement(passive)


def test_iterations_of_lbfgs_lower_the_loss(mnist):
    images, labels = (part[::5] for part in mnist)
    found = recognition.recognise_optics(images, labels, "pde", epochs=4, neurons=16, distance=8.0, progress=False)
    losses = [e.loss for e in found.trained[0].fit.history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.97 * losses[0]


def test_table_of_ways(mnist):
    found = recognition.recognise_optics(*mnist, epochs=1, neurons=8, layers=1, distance=2.0, progress=False)
    (one,) = recognition.agreement(found)
    assert one["class"] == "3" and list(one) == ["class", "trained", "fourier", "fd", "fem"]
    for way, most in (("trained", 0.1), ("fd", 0.1), ("fem", 0.03)):
        assert sum(one[way]) == pytest.approx(1.0)
        assert 0 < np.abs(np.subtract(one[way], one["fourier"])).max() < most
    lines = recognition.table_of_ways([one]).splitlines()
    assert len(lines) == 6 and float(lines[-1].split()[2]) == pytest.approx(100 * one["fem"][0], abs=0.06)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neurons": 10}, "neurons = 10 given; a multiple of 4"),
        ({"distance": -1.0}, "distance = -1.0 given; a positive number"),
        ({"layers": 0}, "layers = 0 given; a positive integer"),
        ({"fineness": 1.5}, "fineness = 1.5 given; a positive integer"),
    ],
)
def test_bad_masks(given, message):
    with pytest.raises(ValueError, match=message):
        optics(**given)


def test_bad_input():
    one = optics()
    with pytest.raises(ValueError, match=r"pictures of shape \(8, 8\) given; \(batch, rows, columns\) allowed"):
        one(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="method 'bpm' given; 'fd' or 'fem' allowed"):
        recognition.light_by_pde(one, torch.zeros(8, 8), "bpm")
    with pytest.raises(ValueError, match="degree = 5 given; a divisor of 24"):
        recognition.light_by_pde(one, torch.zeros(8, 8), refine=1, degree=5)
    with pytest.raises(ValueError, match="pixels = 0 given"):
        recognition.Camera(0)
