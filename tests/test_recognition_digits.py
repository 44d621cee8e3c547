"""Digits by generated networks and media; the command line, JSON and figures of all that recognises."""

import json

from npde_fem import cli, datasets, recognition

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def digits():
    return datasets.digits()


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"learner": "adam", "epochs": 10}, 0.95),
        ({"learner": "adam", "method": "fem", "epochs": 10}, 0.95),
        ({"learner": "lbfgs"}, 0.97),
        ({"learner": "lbfgs", "method": "fem"}, 0.97),
        ({"learner": "pde", "epochs": 40}, 0.93),
        ({"learner": "pseudoinverse"}, 0.97),
        ({"learner": "pseudoinverse", "layers": "random"}, 0.97),
        ({"learner": "pseudoinverse", "layers": "autoencoder"}, 0.93),
    ],
)
def test_every_learner(digits, settings, least):
    found = recognition.recognise_digits(*digits, progress=False, **settings)
    assert found.accuracy >= least
    assert np.array_equal(found.confusion.sum(1), -(-np.bincount(digits[1]) // 5))
    assert found.accuracy == found.trained[0].fit.history[-1].metrics["accuracy"]


@pytest.mark.parametrize("layers", ["npde", "random"])
def test_read_outs_of_larger_pictures(layers):
    images, labels = (part[::5] for part in datasets.mnist5k())
    found = recognition.recognise_digits(images, labels, "pseudoinverse", layers=layers, progress=False)
    assert found.accuracy > 0.85


def test_medium_on_triangles_learns(digits):
    images, labels = digits[0][:100], digits[1][:100]
    found = recognition.recognise_digits(images, labels, "pde", "fem", epochs=4, progress=False)
    losses = [e.loss for e in found.trained[0].fit.history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    assert {name: values.shape for name, values in found.fields.items()} == dict.fromkeys(("D", "a", "s"), (8, 8))
    assert found.fields["D"].min() >= 1e-3 and np.ptp(found.fields["s"]) > 1e-3


def test_media_by_both_methods_are_near(digits):
    pictures = torch.tensor(digits[0][:5])
    with torch.no_grad():
        fd, fem = (recognition.Medium((8, 8), 3, method)(pictures) for method in ("fd", "fem"))
    assert fd.shape == (5, 3) and 1e-6 < float((fd - fem).abs().max()) < 0.15 * float(fd.abs().max())


def test_a_medium_is_as_tall_and_wide_as_the_picture():
    """A picture of one bright pixel stays brightest there, on a grid and on triangles of unlike sides."""
    for method in recognition.METHODS:
        medium = recognition.Medium((5, 7), 1, method)
        picture = torch.zeros(1, 5, 7)
        picture[0, 1, 4] = 1.0
        with torch.no_grad():
            seen = medium.layer(medium.at_nodes(picture.double())[:, 0]).reshape(5, 7)
        assert divmod(int(seen.argmax()), 7) == (1, 4)
        assert {name: c.shape for name, c in medium.coefficients().items()} == dict.fromkeys("Das", (5, 7))


def test_gradients_of_a_medium_by_a_taylor_test(digits):
    medium, pictures, labels = recognition.Medium((8, 8), 10), torch.tensor(digits[0][:6]), torch.arange(6)

    def loss():
        return torch.nn.functional.cross_entropy(medium(pictures), labels)

    begun = loss()
    begun.backward()
    for name in ("D", "a", "s"):
        weight = getattr(medium.layer, name)
        start, slope, rests = weight.detach().clone(), 0.0, []
        way = torch.rand(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        slope = float((weight.grad * way).sum())
        for h in (4e-2, 2e-2, 1e-2):
            with torch.no_grad():
                weight.copy_(start + h * way)
                rests.append(abs(float(loss()) - float(begun.detach()) - h * slope))
                weight.copy_(start)
        assert abs(slope) > 1e-4 and np.all(np.log2(np.array(rests[:-1]) / rests[1:]) > 1.9), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "dg"}, "method 'dg' given; fd, fem allowed"),
        ({"learner": "sgd"}, "learner 'sgd' given; adam, lbfgs, pde, pseudoinverse allowed"),
        ({"learner": "pseudoinverse", "method": "fem"}, "'fem' given; 'fd' allowed"),
        ({"ranks_per_sample": 2}, "ranks_per_sample = 2 given; 1 allowed unless the learner is 'pde'"),
        ({"divisions": [7]}, "numbers from 0 to 4"),
        ({"epochs": 0}, "epochs = 0 given"),
    ],
)
def test_bad_input(digits, given, message):
    with pytest.raises(ValueError, match=message):
        recognition.recognise_digits(*digits, **given)


def test_what_the_command_line_offers_is_what_there_is():
    assert cli._LEARNERS == recognition.LEARNERS


def test_command_line(tmp_path, capsys):
    found, drawn = tmp_path / "found.json", tmp_path / "found.png"
    command = ["learn", "digits", "--learner", "pseudoinverse", "--layers", "random", "--divisions", "2"]
    assert cli.main([*command, "--json", str(found), "--plot", str(drawn)]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert line.split()[:3] == ["digits", "pseudoinverse", "fd"] and "over 2 divisions" in line
    assert heading.split()[0] == "task"
    record = json.loads(found.read_text())
    assert len(record["accuracies"]) == 2 and record["accuracy"] == pytest.approx(np.mean(record["accuracies"]))
    confusion = np.array(record["confusion"])
    unseen = (364, confusion.sum() - 364)
    assert np.trace(confusion) == pytest.approx(np.dot(unseen, record["accuracies"])) and 355 < unseen[1] < 365
    assert f"{100 * record['accuracy']:.2f} %" in line and record["reference"] is None
    assert drawn.stat().st_size > 10_000


def test_command_line_agreement_and_figure_of_masks(tmp_path, capsys):
    found, drawn = tmp_path / "found.json", tmp_path / "found.png"
    command = ["learn", "optics-digits", "--epochs", "1", "--agreement", "--json", str(found), "--plot", str(drawn)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "91.75 %: Lin et al. 2018" in printed[1] and [line.split()[1] for line in printed[4:]] == [
        "trained",
        "fourier",
        "fd",
        "fem",
    ]
    record = json.loads(found.read_text())
    (way,) = record["agreement"]
    assert np.abs(np.subtract(way["fem"], way["fourier"])).max() < 0.05 and record["accuracy"] > 0.75
    assert record["reference"]["accuracy"] == 0.9175 and drawn.stat().st_size > 50_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--layers", "random"], "--layers: for the learner pseudoinverse"),
        (["vowels", "--learner", "pseudoinverse", "--agreement"], "--agreement: for what is trained"),
        (["optics-digits", "--learner", "pseudoinverse", "--agreement"], "--agreement: for what is trained"),
        (["digits", "--ranks-per-sample", "2"], "1 allowed unless the learner is 'pde'"),
        (["vowels", "--data", "nowhere"], "the 279 files of vowels cannot be found in nowhere"),
    ],
)
def test_command_line_refuses(arguments, message, capsys):
    assert cli.main(["learn", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_command_line_suggests_a_learner(capsys):
    with pytest.raises(SystemExit):
        cli.main(["learn", "digits", "--learner", "adams"])
    assert "did you mean 'adam'?" in capsys.readouterr().err


def test_figures_of_plates_and_media(digits, tmp_path):
    from tests.test_recognition_vowels import SMALL, tones

    found = [
        recognition.recognise_vowels(tones(), epochs=2, divisions=[0], progress=False, **SMALL),
        recognition.recognise_vowels(tones(), "pseudoinverse", divisions=[0], probes=8, progress=False, **SMALL),
        recognition.recognise_digits(*digits, "pde", epochs=2, progress=False),
    ]
    for k, one in enumerate(found):
        recognition.figure(tmp_path / f"{k}.png", one)
        assert (tmp_path / f"{k}.png").stat().st_size > 30_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]
