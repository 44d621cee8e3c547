"""Gradients against those of others: PETSc's TSAdjoint, and PyTorch's autograd through the same explicit steps."""

import importlib
import sys
from pathlib import Path

import npde_fem as npde

import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from dolfinx.fem.petsc import assemble_matrix, assemble_vector
from mpi4py import MPI
from petsc4py import PETSc

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("adjoint")
END, STEPS = 0.5, 10


def hill(x):
    return 0.2 + 0.5 * np.exp(-8 * ((x[0] - 0.4) ** 2 + (x[1] - 0.5) ** 2))


def fisher():
    D, r = npde.Parameter("D", 0.04), npde.Parameter("r", 1.7)
    return npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: r * u * (1 - u)), D, r


# -- PETSc -------------------------------------------------------------------------------------------------------


class FisherTS:
    """Fisher-KPP with forms of its own: M u' = R(u), for PETSc's TS; J = 1/2 |u(T)|^2 in L2."""

    def __init__(self, V, D, r, lumped):
        self.D, self.r = fem.Constant(V.mesh, D), fem.Constant(V.mesh, r)
        self.u, v, w = fem.Function(V), ufl.TestFunction(V), ufl.TrialFunction(V)
        by_D = -ufl.inner(ufl.grad(self.u), ufl.grad(v)) * ufl.dx
        by_r = self.u * (1 - self.u) * v * ufl.dx
        rate = self.D * by_D + self.r * by_r
        dx = ufl.dx(scheme="vertex", degree=1) if lumped else ufl.dx
        self.rate, self.slopes = fem.form(rate), [fem.form(by_D), fem.form(by_r)]
        self.jacobian = fem.form(ufl.derivative(rate, self.u, w))
        self.M, self.gram = (assemble_matrix(fem.form(w * v * measure)) for measure in (dx, ufl.dx))
        self.M.assemble()
        self.gram.assemble()
        self.J, self.by = self.M.duplicate(), PETSc.Mat().createDense((self.M.size[0], 2), comm=PETSc.COMM_SELF).setUp()

    def at(self, u):
        self.u.x.array[:] = u.array_r

    def explicit(self, ts, t, u, out):
        """M^-1 R, M diagonal."""
        self.residual(u, out)
        out.pointwiseDivide(out, self.M.getDiagonal())

    def residual(self, u, out):
        self.at(u)
        out.set(0.0)
        assemble_vector(out, self.rate)

    def explicit_jacobian(self, ts, t, u, J, P):
        self.assemble_jacobian(u, J)
        inverse = self.M.getDiagonal()
        inverse.reciprocal()
        J.diagonalScale(L=inverse)

    def assemble_jacobian(self, u, J):
        self.at(u)
        J.zeroEntries()
        assemble_matrix(J, self.jacobian)
        J.assemble()

    def implicit(self, ts, t, u, udot, out):
        self.residual(u, out)
        out.scale(-1.0)
        self.M.multAdd(udot, out, out)

    def implicit_jacobian(self, ts, t, u, udot, shift, J, P):
        self.assemble_jacobian(u, J)
        J.scale(-1.0)
        J.axpy(shift, self.M)

    def by_parameters(self, sign, divide):
        def write(ts, t, u, *rest):
            matrix = rest[-1]
            self.at(u)
            for k, form in enumerate(self.slopes):
                column = assemble_vector(form)
                if divide:
                    column.pointwiseDivide(column, self.M.getDiagonal())
                matrix.setValues(range(column.size), k, sign * column.array_r)
            matrix.assemble()

        return write

    def gradient(self, u0, scheme):
        """J, and its gradient by D, r and the initial values."""
        ts = PETSc.TS().create(PETSc.COMM_SELF)
        if scheme == "rk4":
            ts.setType(PETSc.TS.Type.RK)
            ts.setRKType(PETSc.TS.RKType.RK4)
            ts.setRHSFunction(self.explicit)
            ts.setRHSJacobian(self.explicit_jacobian, self.J)
            ts.setRHSJacobianP(self.by_parameters(1.0, divide=True), self.by)
        else:
            ts.setType(PETSc.TS.Type.CN if scheme == "crank-nicolson" else PETSc.TS.Type.BEULER)
            ts.setIFunction(self.implicit)
            ts.setIJacobian(self.implicit_jacobian, self.J)
            ts.setIJacobianP(self.by_parameters(-1.0, divide=False), self.by)
            ts.getSNES().setTolerances(rtol=1e-14, atol=1e-15)
            ts.getSNES().getKSP().setType("preonly")
            ts.getSNES().getKSP().getPC().setType("lu")
        ts.setTime(0.0)
        ts.setTimeStep(END / STEPS)
        ts.setMaxSteps(STEPS)
        ts.setMaxTime(END)
        ts.setExactFinalTime(PETSc.TS.ExactFinalTime.STEPOVER)
        ts.setSaveTrajectory()
        u = self.M.createVecRight()
        u.array[:] = u0
        ts.solve(u)
        assert ts.getStepNumber() == STEPS
        by_u, by_p = u.duplicate(), self.by.createVecRight()
        self.gram.mult(u, by_u)
        loss = 0.5 * u.dot(by_u)
        by_p.set(0.0)
        ts.setCostGradients([by_u], [by_p])
        ts.adjointSolve()
        found = loss, by_p.array.copy(), by_u.array.copy()
        ts.destroy()
        return found


@pytest.fixture
def tight():
    """States as exact as numbers allow; what Newton's method leaves by default shows in the eighth digit."""
    options = PETSc.Options()
    options["npde_snes_rtol"] = 1e-13
    yield
    options.delValue("npde_snes_rtol")


@pytest.mark.real_scalars("the referee")
@pytest.mark.parametrize("scheme", ["rk4", "crank-nicolson", "backward-euler"])
def test_petsc_ts_adjoint(scheme, tight):
    """TSAdjoint of TSRK (lumped mass) and TSTHETA, with forms, mass and Jacobians assembled apart from ours."""
    lumped = scheme == "rk4"
    V = fem.functionspace(mesh.create_unit_square(MPI.COMM_SELF, 6, 5), ("Lagrange", 1))
    equation, D, r = fisher()
    problem = npde.FEM(equation, V, mass="lumped" if lumped else "consistent")
    dolfinx_adjoint = pytest.importorskip("dolfinx_adjoint")
    u0 = dolfinx_adjoint.Function(V, name="u0")
    u0.interpolate(hill)
    made = npde.scheme_named(scheme)

    def loss():
        solution = npde.solve(problem, u0, t=(0.0, END), dt=END / STEPS, scheme=made)
        return npde.misfit(solution, 0.0)

    value, by_p, by_u = FisherTS(V, float(D), float(r), lumped).gradient(u0.x.array, scheme)
    one = cases.Experiment(problem, loss, [D, r, u0])
    found = one.derivative()
    assert float(one.loss) == pytest.approx(value, rel=1e-8)
    np.testing.assert_allclose([found["D"], found["r"]], by_p, rtol=1e-8)
    np.testing.assert_allclose(found["u0"], by_u, rtol=0, atol=1e-8 * np.abs(by_u).max())


# -- PyTorch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["forward-euler", "rk4"])
def test_torch_autograd(scheme):
    """The same explicit steps of finite differences in plain PyTorch, zero flux at the sides."""
    torch = pytest.importorskip("torch")
    nx, ny = 7, 6
    grid = npde.Grid(MPI.COMM_SELF, (nx, ny), (0, 0), (1, 1))
    equation, D, r = fisher()
    problem = npde.FD(equation, grid)
    u0 = problem.function(problem.initial(hill), "u0")
    made = npde.scheme_named(scheme)
    one = cases.Experiment(
        problem,
        lambda: npde.misfit(npde.solve(problem, u0, t=(0.0, END), dt=END / (2 * STEPS), scheme=made), 0.0),
        [D, r, u0],
    )
    d, growth = (torch.tensor(float(p), dtype=torch.float64, requires_grad=True) for p in (D, r))
    first = torch.tensor(u0.values.reshape(ny, nx), dtype=torch.float64, requires_grad=True)

    def rate(u):
        """d times the Laplacian, the state mirrored at the sides, and growth."""
        high = torch.cat([u[1:2], u, u[-2:-1]])
        wide = torch.cat([u[:, 1:2], u, u[:, -2:-1]], dim=1)
        laplace = (high[2:] - 2 * u + high[:-2]) * (ny - 1) ** 2 + (wide[:, 2:] - 2 * u + wide[:, :-2]) * (nx - 1) ** 2
        return d * laplace + growth * u * (1 - u)

    u, h = first, END / (2 * STEPS)
    for _ in range(2 * STEPS):
        if scheme == "rk4":
            k1 = rate(u)
            k2 = rate(u + h / 2 * k1)
            k3 = rate(u + h / 2 * k2)
            k4 = rate(u + h * k3)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        else:
            u = u + h * rate(u)
    volumes = torch.tensor(problem.layout.control_volumes().reshape(first.shape), dtype=torch.float64)
    loss = 0.5 * (volumes * u**2).sum()
    loss.backward()
    found = one.derivative()
    assert float(one.loss) == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose([found["D"], found["r"]], [d.grad.item(), growth.grad.item()], rtol=1e-10)
    expected = first.grad.numpy().ravel()
    np.testing.assert_allclose(found["u0"], expected, rtol=0, atol=1e-10 * np.abs(expected).max())
