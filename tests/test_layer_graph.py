"""The torch layer as a citizen of torch: its graphs, memory, modules, types, and functions of tensors."""

import copy
import gc
import io
import pickle
import random
import threading
import warnings

import npde_fem as npde
from npde_fem import learn
from npde_fem.learn import bridge
from npde_fem.learn.distributed import Distributed
from npde_fem.solve.integrate import solve as plain_solve
from npde_fem.solve.trajectory import Trajectory

import numpy as np
import pyadjoint
import pytest
import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

COMM = MPI.COMM_WORLD
KINDS = ("fem", "fd")
N = 6
WHEN = {"t": (0, 0.1), "dt": 0.05}
START = 0.3 + 0.1 * np.sin(np.arange(N))


def problem_of(kind="fd", **bounds):
    D = npde.Parameter("D", 0.1, **bounds)
    s = npde.Parameter("s", lambda x: 1 + x[0], field=True)
    equation = npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: s * u * (1 - u), name="growth")
    if kind == "fd":
        return npde.FD(equation, npde.Grid(COMM, (N,), (0,), (1,)))
    return npde.FEM(equation, fem.functionspace(mesh.create_unit_interval(COMM, N - 1), ("Lagrange", 1)))


def start(seed=0, samples=(), dtype=torch.float64):
    made = torch.rand(*samples, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).requires_grad_()


def records():
    """How many solves are remembered."""
    gc.collect()
    return sum(record.content is not None for record in bridge._alive.values())


# -- graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_many_solves_outstanding_backwards_in_any_order(kind):
    layer = learn.Layer(problem_of(kind), **WHEN)
    starts = [start(seed) for seed in range(20)]

    def gradients(order):
        layer.zero_grad()
        losses, found = [layer(u).pow(2).sum() for u in starts], {}
        for k in order:
            found[k] = torch.autograd.grad(losses[k], [starts[k], *layer.parameters()])
        return found

    one_by_one = {k: torch.autograd.grad(layer(u).pow(2).sum(), [u, *layer.parameters()]) for k, u in enumerate(starts)}
    order = list(range(20))
    random.Random(1).shuffle(order)
    for k, found in gradients(order).items():
        for mine, expected in zip(found, one_by_one[k], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-13)


def test_retained_graphs_and_shared_weights():
    layer, u = learn.Layer(problem_of(), **WHEN), start()
    loss = layer(u).sum() + layer(2 * u).sum()
    grads = [torch.autograd.grad(loss, [u, layer.D], retain_graph=True) for _ in range(2)]
    loss.backward()
    for first, second, leaf in zip(*grads, (u, layer.D), strict=True):
        assert torch.equal(first, second) and torch.equal(first, leaf.grad)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradient_is_that_of_the_values_of_the_forward_pass():
    """Whatever became of the equation's values meanwhile; and they are left alone."""
    problem = problem_of()
    layer, u = learn.Layer(problem, **WHEN, inputs=("u0", "D"), parameters=[]), start()
    d = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(layer(u, d).sum(), (u, d))
    loss = layer(u, d).sum()
    field = problem.field_values("s")
    problem.parameters["D"].value = 7.0
    problem.set_field("s", 3 * field)
    layer(u.detach(), torch.tensor(0.9, dtype=torch.float64))
    found = torch.autograd.grad(loss, (u, d))
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=0)
    assert float(problem.parameters["D"].value) == 7.0
    np.testing.assert_array_equal(problem.field_values("s"), 3 * field)
    assert not torch.allclose(torch.autograd.grad(layer(u, d).sum(), u)[0], expected[0])  # of the field's new values


def test_weights_changed_in_place_are_noticed():
    layer, u = learn.Layer(problem_of(), **WHEN), start()
    loss = layer(u).sum()
    with torch.no_grad():
        layer.D += 0.1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_functions_in_the_equation_changed_meanwhile_are_noticed():
    domain = mesh.create_unit_interval(COMM, N - 1)
    space = fem.functionspace(domain, ("Lagrange", 1))
    k = fem.Function(space, name="k")
    k.x.array[:] = 1.0
    problem = npde.FEM(npde.NPDE(flux=lambda u, x, t: k * ufl.grad(u)), space)
    layer, u = learn.Layer(problem, **WHEN), start()
    loss = layer(u).square().sum()
    loss.backward(retain_graph=True)
    k.x.array[:] = 2.0
    with pytest.raises(RuntimeError, match="'k' in the equation was changed"):
        loss.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_recorded(mode, monkeypatch):
    layer, u = learn.Layer(problem_of(), **WHEN), start()
    expected = layer(u).detach()
    made = []
    monkeypatch.setattr(Trajectory, "begin", lambda *_: made.append(1))
    with mode():
        found = layer(u)
    assert not made and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for p in layer.parameters():
        p.requires_grad_(False)
    layer(u.detach())
    assert not made


def test_records_live_as_long_as_what_torch_saves():
    layer, u = learn.Layer(problem_of(), **WHEN), start()
    assert records() == 0
    losses = [layer(u).sum() for _ in range(3)]
    assert records() == 3
    losses[0].backward()  # and the loss lives on
    assert records() == 2
    losses[1].backward(retain_graph=True)
    assert records() == 2
    del losses[1:]
    assert records() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [(), (2,)])
@pytest.mark.filterwarnings("ignore:overflow")
def test_solves_after_one_that_blew_up(kind, samples):
    """What problems lend is as good as new, parameters have their values, and earlier graphs are whole."""
    layer, u = learn.Layer(problem_of(kind), **WHEN), start(samples=samples)
    before = layer(u)
    with pytest.raises(npde.SolveError):
        layer(torch.full_like(u, 1e200).requires_grad_())
    after = layer(u)
    assert torch.equal(before, after)
    gradients = [torch.autograd.grad(y.square().sum(), [u, *layer.parameters()]) for y in (before, after)]
    assert all(map(torch.equal, *gradients))
    assert records() == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_regions_solve_again_and_keep_nothing(reentrant):
    layer, u = learn.Layer(problem_of(), **WHEN), start()
    expected = torch.autograd.grad(layer(layer(u)).square().sum(), [u, layer.D, layer.s])
    loss = checkpoint(lambda v: layer(layer(v)), u, use_reentrant=reentrant).square().sum()
    assert records() == 0
    loss.backward()
    for leaf, wanted in zip((u, layer.D, layer.s), expected, strict=True):
        torch.testing.assert_close(leaf.grad, wanted, rtol=1e-12, atol=1e-14)
    assert records() == 0


def test_saved_tensors_may_be_moved_elsewhere():
    layer, u = learn.Layer(problem_of(), **WHEN), start()
    expected = torch.autograd.grad(layer(u).square().sum(), [u, layer.D])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        loss = layer(u).square().sum()
    for mine, wanted in zip(torch.autograd.grad(loss, [u, layer.D]), expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=0)


def test_gradients_of_tangents():
    """Backwards through a derivative taken forwards."""
    layer, u = learn.Layer(problem_of(), **WHEN, parameters=["D"]), start()
    v = start(1).detach()
    loss = layer(u).pow(3).sum()
    (slope,) = torch.autograd.grad(loss, u, create_graph=True)
    expected = torch.autograd.grad((slope * v).sum(), [u, layer.D])
    with torch.autograd.forward_ad.dual_level():
        moving = layer(torch.autograd.forward_ad.make_dual(u, v)).pow(3).sum()
        tangent = torch.autograd.forward_ad.unpack_dual(moving).tangent
    found = torch.autograd.grad(tangent, [u, layer.D])
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-10)


def test_transforms_of_torch_func():
    layer, u = learn.Layer(problem_of(), **WHEN), start().detach()
    slope = torch.func.grad(lambda v: layer(v).square().sum())(u)
    leaf = u.clone().requires_grad_()
    torch.testing.assert_close(slope, torch.autograd.grad(layer(leaf).square().sum(), leaf)[0], rtol=1e-12, atol=0)
    _, change = torch.func.jvp(lambda v: layer(v).square().sum(), (u,), (torch.ones_like(u),))
    assert change.item() == pytest.approx(slope.sum().item(), rel=1e-9)


@pytest.mark.parametrize("of", [lambda: learn.Layer(problem_of(), **WHEN, parameters=[]), lambda: first_control("fd")])
def test_third_derivatives_are_refused(of):
    function, u = of(), start()
    (slope,) = torch.autograd.grad(function(u).square().sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(second.sum(), u)


def test_threads_that_mpi_does_not_serve(monkeypatch):
    layer, u = learn.Layer(problem_of(), **WHEN), start()
    loss = layer(u).sum()
    monkeypatch.setattr(bridge.MPI, "Query_thread", lambda: MPI.THREAD_FUNNELED)
    raised = []

    def run():
        try:
            loss.backward()
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "thread" in raised[0] and "MPI.THREAD_MULTIPLE" in raised[0]
    layer(u).sum().backward()


# -- modules -----------------------------------------------------------------------------------------------------


def test_state_is_saved_and_loaded(tmp_path):
    layer, other = learn.Layer(problem_of(), **WHEN), learn.Layer(problem_of(), **WHEN)
    assert [(n, p.dtype) for n, p in layer.named_parameters()] == [("D", torch.float64), ("s", torch.float64)]
    with torch.no_grad():
        layer.D += 0.5
        layer.s *= 2
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    u = start()
    assert torch.equal(layer(u), other(u))


def test_copies_share_the_problem_and_own_their_weights():
    model = torch.nn.Sequential(torch.nn.Linear(N, N).double(), learn.Layer(problem_of(), **WHEN))
    other = copy.deepcopy(model)
    assert other[1].problem is model[1].problem and torch.equal(other[1].D, model[1].D)
    assert isinstance(other[1].s, Distributed) and not isinstance(other[1].D, Distributed)
    with torch.no_grad():
        other[1].D += 1
    assert model[1].D.item() == pytest.approx(0.1)
    assert not torch.allclose(model(start()), other(start()))


@pytest.mark.parametrize("save", [pickle.dumps, lambda layer: torch.save(layer, io.BytesIO())])
def test_pickling_says_what_to_do(save):
    with pytest.raises(TypeError, match="state_dict"):
        save(learn.Layer(problem_of(), **WHEN))


def test_names_that_torch_does_not_take():
    half, dotted = npde.Parameter("half", 0.5), npde.Parameter("a.b", 0.5)
    problem = npde.FD(npde.NPDE(source=lambda u, x, t: half * u + dotted), npde.Grid(COMM, (N,), (0,), (1,)))
    layer = learn.Layer(problem, **WHEN)
    assert set(layer.state_dict()) == {"half_", "a_b"}
    assert layer.as_tensor_of("a.b") is layer.a_b and layer.as_tensor_of(half) is layer.half_
    rivals = [npde.Parameter(name, value) for value, name in enumerate(("a.b", "a_b", "_names"))]
    problem = npde.FD(npde.NPDE(source=lambda u, x, t: sum(rivals) * u), npde.Grid(COMM, (N,), (0,), (1,)))
    layer = learn.Layer(problem, **WHEN)
    assert [layer.as_tensor_of(p).item() for p in rivals] == [0, 1, 2] == [p.item() for p in layer.parameters()]
    assert "growth" in repr(learn.Layer(problem_of(), **WHEN)) and "u0" in repr(layer)


@pytest.mark.parametrize(("bounds", "slope"), [((0, None), 1), ((None, 2), 1), ((0, 2), 1), ((None, None), 1)])
def test_bounds(bounds, slope):
    problem = problem_of(bounds=bounds)
    layer = learn.Layer(problem, **WHEN, parameters=["D"], bounded=True)
    assert layer.as_tensor_of("D").item() == pytest.approx(0.1, rel=1e-14)
    if bounds != (None, None):
        for extreme in (-60.0, 60.0):
            with torch.no_grad():
                layer.D.fill_(extreme)
            value = layer.as_tensor_of("D").item()
            assert bounds[0] is None or value >= bounds[0]
            assert bounds[1] is None or value <= bounds[1]
    with torch.no_grad():
        layer.D.fill_(0.3)
    gradcheck(lambda f: torch.func.functional_call(layer, {"D": f}, (start().detach(),)), (layer.D,))
    layer.write_back()
    assert float(problem.parameters["D"].value) == pytest.approx(layer.as_tensor_of("D").item(), rel=1e-15)


def test_values_are_written_back():
    problem = problem_of()
    layer = learn.Layer(problem, **WHEN)
    with torch.no_grad():
        layer.D += 0.5
        layer.s *= 2
    expected = layer(torch.from_numpy(START)).detach().numpy()
    before = npde.solve(problem, START, **WHEN).values
    layer.write_back()
    np.testing.assert_allclose(npde.solve(problem, START, **WHEN).values, expected, rtol=1e-12)
    assert not np.allclose(before, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision(kind):
    """Comes back as it is given, computed in double precision."""
    layer, u = learn.Layer(problem_of(kind), **WHEN), start(dtype=torch.float32)
    found = layer(u)
    assert found.dtype == torch.float32
    double = u.detach().double().requires_grad_()
    torch.testing.assert_close(found, layer(double).float(), rtol=0, atol=0)
    found.square().sum().backward()
    layer(double).square().sum().backward()
    assert u.grad.dtype == torch.float32 and layer.D.grad.dtype == torch.float64
    torch.testing.assert_close(u.grad, double.grad.float(), rtol=1e-6, atol=1e-7)
    layer.float()
    assert layer(u).dtype == torch.float32 and layer(double).dtype == torch.float64


def test_views_with_reversed_signs():
    """Imaginary parts of conjugates are views of which torch keeps the sign apart; inputs and gradients may be such."""
    problem = problem_of()
    layers = [learn.Layer(problem, **WHEN, observe=at) for at in (None, npde.Probe(problem, [0.4, 0.7]))]
    for of in (*layers, first_control("fd")):
        u = start().detach()
        view = torch.complex(u, -u).conj().imag.requires_grad_()
        assert view.is_neg()
        plain = u.clone().requires_grad_()
        sums = []
        for x in (view, plain):
            y = of(x)
            sums.append(torch.complex(y, 2 * y).conj().imag.sum())
            sums[-1].backward()
        assert sums[0] == sums[1]
        torch.testing.assert_close(view.grad.resolve_neg(), plain.grad, rtol=0, atol=0)
    fixed = learn.Layer(problem, **WHEN, inputs=["s"], u0=torch.complex(u, -u).conj().imag)
    layers[0].s.data.fill_(1.0)
    torch.testing.assert_close(fixed(torch.ones(N, dtype=torch.float64)), layers[0](u), rtol=0, atol=0)


def test_memory_is_shared_where_it_can_be():
    """What a solve returns is the tensor's memory; a state is copied once, into the solver's."""
    problem = problem_of()
    layer, u = learn.Layer(problem, **WHEN), start().detach()
    assert layer._slots[0].real(u).data_ptr() == u.data_ptr()
    with torch.no_grad():
        assert layer(u).untyped_storage().nbytes() == 8 * N


# -- functions of tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_solve_as_a_function_of_tensors(kind):
    problem = problem_of(kind)
    D, s = problem.parameters["D"], problem.parameters["s"]
    solve = learn.differentiable(npde.solve)
    u, field = start(), start(1)

    def run(u, field):
        found = solve(
            problem, u, **WHEN, observe=[0.05], parameters={D: 0.3, s: field}, integrals=[lambda u, x, t: u**2]
        )
        assert found.times == [0.05] and found.t == 0.1
        return found.values, found.states, found.integrals

    expected = npde.solve(
        problem,
        u.detach().numpy(),
        **WHEN,
        observe=[0.05],
        parameters={D: 0.3, s: field.detach().numpy()},
        integrals=[lambda u, x, t: u**2],
    )
    values, states, integrals = run(u, field)
    np.testing.assert_allclose(values.detach().numpy(), expected.values, rtol=1e-12)
    np.testing.assert_allclose(states.detach().numpy(), expected.states, rtol=1e-12)
    np.testing.assert_allclose(integrals.detach().numpy(), expected.integrals, rtol=1e-12)
    assert gradcheck(run, (u, field), nondet_tol=1e-9, fast_mode=True)
    assert gradgradcheck(run, (u, field), nondet_tol=1e-9, fast_mode=True)


def test_solve_of_waves_as_a_function_of_tensors():
    problem = npde.FD(npde.physics.wave(1.0), npde.Grid(COMM, (N,), (0,), (1,)))
    found = learn.differentiable(npde.solve)(problem, start(), **WHEN, velocity=start(1), observe=[0.05])
    assert found.velocities.shape == (1, N) and found.velocity_values.requires_grad
    expected = plain_solve(
        problem, start().detach().numpy(), **WHEN, velocity=start(1).detach().numpy(), observe=[0.05]
    )
    np.testing.assert_allclose(found.velocity_values.detach().numpy(), expected.velocity_values, rtol=1e-12)


def reduced(kind):
    problem = problem_of(kind)
    controls = [problem.parameters["D"], problem.parameters["s"]]
    if kind == "fem":
        import dolfinx_adjoint

        first = dolfinx_adjoint.Function(problem.space, name="u0")
        first.x.array[:] = START
    else:
        first = problem.function(START)
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        loss = npde.integral(npde.solve(problem, first, **WHEN), lambda u, x, t: u**3)
        pyadjoint.pause_annotation()
        return pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in (first, *controls)], tape=tape)


def first_control(kind):
    loss, others = learn.differentiable(reduced(kind)), (torch.tensor(0.1, dtype=torch.float64), start(3).detach())
    return lambda u: loss(u, *others)


@pytest.mark.parametrize("kind", KINDS)
def test_reduced_functionals(kind):
    """Values, both derivatives, and these after the tape was played with other values."""
    functional = reduced(kind)
    loss = learn.differentiable(functional)
    inputs = [start(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True), start(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert gradcheck(loss, inputs, check_forward_ad=True, nondet_tol=1e-9, fast_mode=True)
        assert gradgradcheck(loss, inputs, nondet_tol=1e-9, fast_mode=True)
    values = [loss(start(seed), *inputs[1:]) for seed in range(4)]
    expected = [torch.autograd.grad(loss(start(seed), *inputs[1:]), inputs[1:]) for seed in range(4)]
    for seed in (2, 0, 3, 1):
        found = torch.autograd.grad(values[seed], inputs[1:])
        for mine, wanted in zip(found, expected[seed], strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-13)
    assert loss(*(x.detach().float() for x in inputs)).dtype == torch.float32


def test_reduced_functionals_of_one_tape():
    """The gradient is that where the functional was evaluated, whatever another one played on the tape since."""
    both = reduced("fd")
    by_number, by_field = (
        learn.differentiable(pyadjoint.ReducedFunctional(both.functional, both.controls[i], tape=both.tape))
        for i in (1, 2)
    )
    D = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    value = by_number(D)
    (expected,) = torch.autograd.grad(by_number(D), D)
    by_field(start(2))
    (found,) = torch.autograd.grad(value, D)
    (elsewhere,) = torch.autograd.grad(by_number(D), D)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert abs(elsewhere / expected - 1) > 1e-3


def test_importing_npde_fem_leaves_torch_alone():
    import subprocess
    import sys

    code = (
        "import sys, npde_fem; assert 'torch' not in sys.modules; npde_fem.learn.Layer; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    with pytest.raises(AttributeError, match="'lern'"):
        _ = npde.lern
