"""All learners on the same digits: loss and accuracy against time; and what vowels and light in masks come to.

    python benchmarks/learners.py --plot learners.png --json learners.json

The digits are scikit-learn's 1,797, four fifths to learn from, one to test on, the same for all. Beside ours are what a
user has without them: the stock twin of the generated network trained by torch, and scikit-learn's logistic regression.
Loss is cross-entropy with labels smoothed by 0.1; pseudoinverse learning minimises squares, and has none. On one core;
times are without imports and compilation.
"""

from __future__ import annotations

import time
from typing import Any

from npde_fem import datasets, learn, recognition
from npde_fem.figures import save_figure
from npde_fem.recognition import digits

import numpy as np
import torch
from _report import finish, parser, row
from mpi4py import MPI

# Name, what recognise_digits is told, and least accuracy in %, where one is asked for.
LEARNERS: tuple[tuple[str, dict[str, Any], float | None], ...] = (
    ("Adam, FD network", {"learner": "adam"}, None),
    ("Adam, FEM network", {"learner": "adam", "method": "fem"}, None),
    ("L-BFGS, FD network", {"learner": "lbfgs"}, None),
    ("L-BFGS, FEM network", {"learner": "lbfgs", "method": "fem"}, None),
    ("PDE-constrained, FD medium", {"learner": "pde"}, None),
    ("PDE-constrained, FEM medium", {"learner": "pde", "method": "fem", "epochs": 20}, None),
    ("pseudoinverse, NPDE medium", {"learner": "pseudoinverse"}, 97.0),
    ("pseudoinverse, random convolutions", {"learner": "pseudoinverse", "layers": "random"}, 97.0),
    ("pseudoinverse, autoencoders", {"learner": "pseudoinverse", "layers": "autoencoder"}, None),
)


def stock(images: Any, labels: Any) -> list[tuple[float, float, float]]:
    """Train the stock twin of the generated network by torch alone; return time, loss and accuracy by epoch."""
    fold = recognition.folds(labels)
    seen, unseen = (torch.from_numpy(np.flatnonzero(part)) for part in (fold != 0, fold == 0))
    x, y = torch.tensor(images, dtype=torch.float32)[:, None], torch.tensor(labels)
    torch.manual_seed(0)
    model = digits._convolutions((8, 8), 10)[1].as_torch()
    epochs = digits.EPOCHS["adam"]
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    begun, found = time.perf_counter(), []
    for _ in range(epochs):
        losses = []
        for batch in seen[torch.randperm(len(seen))].split(32):
            optimiser.zero_grad()
            loss = digits._smoothed(model(x[batch]), y[batch])
            loss.backward()
            optimiser.step()
            losses.append(loss.item() * len(batch))
        schedule.step()
        with torch.no_grad():
            right = (model(x[unseen]).argmax(1) == y[unseen]).double().mean().item()
        found.append((time.perf_counter() - begun, sum(losses) / len(seen), right))
    return found


def logistic(images: Any, labels: Any) -> tuple[float, float]:
    """Return time and accuracy of scikit-learn's logistic regression on the pixels."""
    from sklearn.linear_model import LogisticRegression

    fold, flat = recognition.folds(labels), images.reshape(len(images), -1)
    begun = time.perf_counter()
    model = LogisticRegression(max_iter=1000).fit(flat[fold != 0], labels[fold != 0])
    return time.perf_counter() - begun, float(model.score(flat[fold == 0], labels[fold == 0]))


def curve(fit: learn.Fit) -> list[tuple[float, float, float]]:
    """Return time, loss and accuracy by epoch."""
    return [(e.seconds, e.loss, e.metrics["accuracy"]) for e in fit.history]


def draw(path: str, curves: dict[str, list[tuple[float, float, float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), layout="constrained")
    colours = {
        "Adam": "#33658a",
        "L-BFGS": "#e4572e",
        "PDE-c": "#6a994e",
        "pseud": "#7b2d8b",
        "stock": "0.3",
        "logis": "0.6",
    }
    marks = iter("osDv^<>ph*X")
    for name, points in curves.items():
        seconds, losses, accuracies = np.array(points).T
        colour = next(c for begins, c in colours.items() if name.startswith(begins))
        style = {"color": colour, "ls": "--" if "FEM" in name else "-", "lw": 1.4}
        if len(points) == 1:
            style |= {"marker": next(marks), "ls": "", "ms": 9, "alpha": 0.8}
        elif np.all(np.isfinite(losses)):
            left.plot(seconds, losses, label=name, **style)
        right.plot(seconds, 100 * accuracies, label=name, **style)
    left.set(xscale="log", yscale="log", xlabel="s", title="loss")
    right.set(xscale="log", xlabel="s", ylim=(60, 100), title="accuracy on unseen digits, %")
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.93")
    save_figure(figure, path)


def main() -> None:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--plot", metavar="FILE", help="draw loss and accuracy against time")
    made.add_argument("--quick", action="store_true", help="digits only, without what takes minutes")
    arguments = made.parse_args()
    torch.set_num_threads(1)
    images, labels = datasets.digits()
    rows, curves = [], {}

    def note(case: str, accuracy: float, seconds: float, least: float | None = None, most: float | None = None) -> None:
        rows.append(row(case, "test accuracy, %", 100 * accuracy, at_least=least))
        rows.append(row(case, "s", seconds, at_most=most))
        print(f"{case}: {100 * accuracy:.2f} %, {seconds:.1f} s", flush=True)

    # Compilation, and what torch imports when it first trains, are not what is measured.
    for learner in ("pde", "adam"):
        recognition.recognise_digits(images[:200], labels[:200], learner, epochs=1, comm=MPI.COMM_SELF, progress=False)
    for name, settings, least in LEARNERS:
        if arguments.quick and name.endswith("FEM medium"):
            continue
        found = recognition.recognise_digits(images, labels, comm=MPI.COMM_SELF, progress=False, **settings)
        note(f"digits: {name}", found.accuracy, found.seconds, least, None if least is None else 10.0)
        curves[name] = curve(found.trained[0].fit)
    curves["stock network, torch's Adam"] = stock(images, labels)
    seconds, _, right = curves["stock network, torch's Adam"][-1]
    note("digits: stock network, torch's Adam", right, seconds)
    seconds, right = logistic(images, labels)
    curves["logistic regression, scikit-learn"] = [(seconds, np.nan, right)]
    note("digits: logistic regression, scikit-learn", right, seconds)
    if not arguments.quick:
        mnist = datasets.mnist5k()
        for learner, least in (("adam", 85.0), ("lbfgs", None), ("pseudoinverse", None)):
            found = recognition.recognise_optics(*mnist, learner, comm=MPI.COMM_SELF, progress=False)
            note(f"optics-digits: {learner}", found.accuracy, found.seconds, least)
        try:
            recordings = datasets.vowels()
        except datasets.DataUnavailable as error:
            print(f"vowels: left out: {error}")
        else:
            for learner, least in (("adam", 80.0), ("pseudoinverse", None)):
                found = recognition.recognise_vowels(recordings, learner, comm=MPI.COMM_SELF, progress=False)
                note(
                    f"vowels: {learner}, five divisions",
                    found.accuracy,
                    found.seconds,
                    least,
                    3600.0 if least else None,
                )
                rows.append(row(f"vowels: {learner}, five divisions", "standard deviation, points", 100 * found.spread))
    if arguments.plot:
        draw(arguments.plot, curves)
    finish(rows, arguments.json)


if __name__ == "__main__":
    main()
