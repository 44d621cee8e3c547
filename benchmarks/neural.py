"""Assembly of a reaction that is a neural network, in units of that of a cubic polynomial, on the same quadrature.

P1 triangles, 128 x 128 squares, the reaction integrated at six points of each; alone, and with diffusion. Networks have
two hidden layers. Compile seconds are those from the making of a problem to its first residual and Jacobian, in a
process of its own with an empty cache, and once more with what it left there. Beside them the same for a network
written out in UFL, which FFCx turns into C: why the package does not do that.
"""

import functools
import json
import os
import tempfile
import time

import npde_fem as npde

import _report
import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from torch import nn

N = 128
ROUNDS, COUNT = 7, 15


def network(width, inputs=1, activation=nn.Tanh):
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 1)]
    return npde.neural(nn.Sequential(*layers).double())


def written_out(net, u):
    """Return a network of tanh layers as UFL."""
    values = [u]
    for layer in net.module:
        if isinstance(layer, nn.Linear):
            rows, shifts = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            sums = [sum(float(w) * v for w, v in zip(row, values, strict=True)) for row in rows]
            values = [e + float(c) for e, c in zip(sums, shifts, strict=True)]
        else:
            values = [ufl.tanh(v) for v in values]
    return values[0]


def reaction(name):
    """Return a source: "cubic", or "WIDTH tanh", "WIDTH relu", "WIDTH two" (inputs), "WIDTH ufl" (written out)."""
    if name == "cubic":
        return lambda u, x, t: u * (u - 0.3) * (1 - u)
    width, kind = name.split()
    net = network(int(width), 2 if kind == "two" else 1, nn.ReLU if kind == "relu" else nn.Tanh)
    if kind == "ufl":
        return lambda u, x, t: written_out(net, u)
    return lambda u, x, t: net(u, x[0]) if kind == "two" else net(u)


class Assembly:
    """A problem, to be assembled at states that differ from time to time."""

    def __init__(self, name, diffusion):
        space = fem.functionspace(mesh.create_unit_square(MPI.COMM_SELF, N, N), ("Lagrange", 1))
        begun = time.perf_counter()
        flux = (lambda u, x, t: 0.1 * ufl.grad(u)) if diffusion else None
        # By default UFL takes degree 4 for the cubic and 3 for a network, six points both, but far more for its layers.
        degree = 4 if name.endswith("ufl") else None
        self.problem = npde.FEM(npde.NPDE(flux=flux, source=reaction(name)), space, quadrature_degree=degree)
        self.u = self.problem.initial(lambda x: 0.5 + 0.5 * np.sin(3 * x[0]) * x[1])
        self.out, self.matrix = np.zeros(self.problem.n_owned), self.problem.new_matrix()
        self.residual()
        self.jacobian()
        self.seconds = time.perf_counter() - begun

    def residual(self):
        self.u += 1e-9
        self.problem.rate(0.0, self.u, self.out)

    def jacobian(self):
        self.u += 1e-9
        self.problem.jacobian(0.0, self.u, 1.0, 0.1, self.matrix)

    def gradient(self):
        lin = self.problem.linearised(list(self.problem.parameters.values()))
        self.u += 1e-9
        lin.at(0.0, self.u)
        lin.clear()
        lin.collect("source", self.out)
        lin.gradient()


def best(work, count):
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


@functools.cache
def cubic(diffusion):
    return Assembly("cubic", diffusion)


def compare(name, diffusion):
    """Return milliseconds of residual and Jacobian, and their medians in units of the cubic's, taken in turn."""
    one, other = Assembly(name, diffusion), cubic(diffusion)
    count = COUNT if best(one.residual, 1) < 0.02 else 3
    found = {}
    for what in ("residual", "jacobian"):
        pairs = [(best(getattr(one, what), count), best(getattr(other, what), count)) for _ in range(ROUNDS)]
        found[what] = 1e3 * min(a for a, _ in pairs), float(np.median([a / b for a, b in pairs]))
    return one, found


def compile_seconds(name):
    """Return seconds of a first run with an empty cache, and of the next."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            return [_report.on_ranks(__file__, 1, name) for _ in range(2)]
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def main():
    arguments = _report.parser(__doc__).parse_args()
    if arguments.worker:
        print(json.dumps(Assembly(arguments.worker, True).seconds))
        return
    rows = []
    for diffusion in (False, True):
        where = "with diffusion" if diffusion else "alone"
        for what in ("residual", "jacobian"):
            seconds = best(getattr(cubic(diffusion), what), ROUNDS * COUNT)
            rows.append(_report.row(f"cubic, {where}", f"milliseconds a {what}", 1e3 * seconds))
        for name in ("8 tanh", "16 tanh", "32 tanh", "64 tanh", "32 relu", "32 two", "8 ufl"):
            one, found = compare(name, diffusion)
            case = f"2 x {name}, {where}"
            for what, (milliseconds, ratio) in found.items():
                rows.append(_report.row(case, f"milliseconds a {what}", milliseconds))
                bar = 2.0 if name == "32 tanh" else None
                rows.append(_report.row(case, f"ratio of the {what}s, to the cubic", ratio, at_most=bar))
            if diffusion and not name.endswith("ufl"):
                one.gradient()
                rows.append(_report.row(case, "milliseconds a gradient by weights", 1e3 * best(one.gradient, 5)))
    for name in ("cubic", "8 tanh", "32 tanh", "64 tanh", "32 relu", "32 two", "8 ufl"):
        first, again = compile_seconds(name)
        case = name if name == "cubic" else f"2 x {name}"
        bar = 60.0 if name == "32 tanh" else None
        rows += [
            _report.row(case, "compile seconds, first", first, at_most=bar),
            _report.row(case, "seconds, compiled before", again),
        ]
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
