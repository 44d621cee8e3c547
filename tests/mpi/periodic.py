"""Periodic finite elements on all ranks; rank 0 saves what does not depend on their number to the .npz file named."""

import sys
from itertools import combinations

import npde_fem as npde

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
CELLS = {1: ("interval",), 2: ("triangle", "quadrilateral"), 3: ("tetrahedron", "hexahedron")}
LOWER, UPPER, CUTS = (-1.0, 0.0, 0.5), (1.0, 1.0, 2.0), (4, 5, 3)
GHOSTS = dolfinx.mesh.GhostMode


def box(kind, cuts=CUTS, lower=LOWER, upper=UPPER, ghosts=GHOSTS.shared_facet, comm=COMM):
    """A box of cells of a kind, cut into so many along each axis."""
    dim = next(d for d, kinds in CELLS.items() if kind in kinds)
    sides = [list(lower[:dim]), list(upper[:dim])]
    if dim == 1:
        return dolfinx.mesh.create_interval(comm, cuts[0], [lower[0], upper[0]], ghost_mode=ghosts)
    make = dolfinx.mesh.create_rectangle if dim == 2 else dolfinx.mesh.create_box
    return make(comm, sides, cuts[:dim], dolfinx.mesh.to_type(kind), ghost_mode=ghosts)


def every_choice():
    """Yield kind of cell and axes, all of them."""
    for dim, kinds in CELLS.items():
        for kind in kinds:
            for count in range(1, dim + 1):
                for axes in combinations(range(dim), count):
                    yield kind, axes


def wave(x, axes, dim):
    """A function that is periodic along some axes of the box, and grows along the others."""
    total = 1.0
    for axis in range(dim):
        angle = 2 * np.pi * (x[axis] - LOWER[axis]) / (UPPER[axis] - LOWER[axis])
        total = total + (1 + axis) * (np.sin(angle + 0.3 * axis) if axis in axes else x[axis]) * total
    return total


def functional(mesh, integrand):
    return COMM.allreduce(dolfinx.fem.assemble_scalar(dolfinx.fem.form(integrand, dtype=np.float64)), op=MPI.SUM)


def check_mesh(kind, axes, ghosts):
    """Sizes, volume, boundary, continuity across the seam, and the way from the mesh before and back."""
    before = box(kind, ghosts=ghosts)
    mesh, dim = npde.periodic_mesh(before, axes), before.geometry.dim
    assert mesh.axes == axes and npde.periodic_mesh(mesh, axes[0]) is mesh
    extents, cuts = np.subtract(UPPER, LOWER)[:dim], CUTS[:dim]
    one = dolfinx.fem.Constant(mesh, 1.0)
    sides = sum(2 * np.prod(extents) / extents[a] for a in range(dim) if a not in axes)
    found = [functional(mesh, one * ufl.dx), functional(mesh, one * ufl.ds)]
    np.testing.assert_allclose(found, [np.prod(extents), sides], rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(mesh.geometry.index_map().size_global, before.geometry.index_map().size_global)
    for degree in (1, 2, 3):
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        count = np.prod([degree * n + (a not in axes) for a, n in enumerate(cuts)])
        assert space.dofmap.index_map.size_global == count, (kind, axes, degree)
    # Degree three tells whether the edges are seen in one direction from either side.
    old = dolfinx.fem.functionspace(before, ("Lagrange", degree))
    given, back = dolfinx.fem.Function(old, dtype=np.float64), dolfinx.fem.Function(old, dtype=np.float64)
    direct, carried = dolfinx.fem.Function(space, dtype=np.float64), dolfinx.fem.Function(space, dtype=np.float64)
    for function in (given, direct):
        function.interpolate(lambda x: wave(x, axes, dim))
        function.x.scatter_forward()
    mesh.carry(given, carried)
    mesh.carry(carried, back)
    np.testing.assert_allclose(carried.x.array, direct.x.array, rtol=0, atol=1e-12)
    np.testing.assert_allclose(back.x.array, given.x.array, rtol=0, atol=1e-12)
    if ghosts == GHOSTS.shared_facet or COMM.size == 1:
        assert abs(functional(mesh, ufl.jump(carried) ** 2 * ufl.dS)) < 1e-20


def drifting(dim, axes, rate=0.05):
    """Diffusion by a field and the state, and a drift along the periodic axes that carries mass across the seam."""
    diffusion = npde.Parameter("D", lambda x: 0.04 + 0.01 * np.sin(2 * np.pi * x[1]), field=True)
    drift = [0.7 if axis in axes else 0.0 for axis in range(dim)]
    return npde.NPDE(flux=lambda u, x, t: rate * u * ufl.grad(u) + diffusion * ufl.grad(u) - u * ufl.as_vector(drift))


def problem_of(kind, axes, degree=1, equation=None, **options):
    mesh = box(kind)
    equation = drifting(mesh.geometry.dim, axes) if equation is None else equation
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
    return npde.FEM(equation, space, [npde.Periodic(a) for a in axes], **options)


def bump(x):
    return (
        1.5 + np.cos(np.pi * (x[0] - 0.7)) * (1 + 0.3 * np.cos(2 * np.pi * x[1])) + 0.1 * np.cos(4 * np.pi * x[2] / 1.5)
    )


def solved(kind, axes, degree):
    """Values after some steps, sorted by coordinates; the mass at the start and the end."""
    problem = problem_of(kind, axes, degree, quadrature_degree=4)
    masses = []
    result = npde.solve(
        problem,
        bump,
        t=(0, 0.2),
        dt=0.05,
        scheme=npde.CrankNicolson(),
        rescue=None,
        observe=([0, 0.2], lambda t, u: masses.append(problem.total(u.x.array[: problem.n_owned])[0])),
    )
    np.testing.assert_allclose(masses[1], masses[0], rtol=1e-10)
    parts = COMM.allgather((problem.coordinates(), result.values))
    x, values = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    dim = problem.dim
    assert np.all(x[:, axes] < np.array(UPPER)[list(axes)] - 1e-9)  # the seam has the lower side's coordinates
    order = np.lexsort(np.round(x[:, :dim], 9).T)
    values = values[order]
    probe = npde.Probe(problem, np.array([LOWER, UPPER, np.add(LOWER, (0.2, 0.3, 0.1))])[:, :dim])
    seen = probe.apply(result.values)[:, 0]
    return np.concatenate([values, seen, masses])


def check_boundary():
    """Dirichlet, fluxes and tags on the sides that remain, up to the seam."""
    before = box("triangle", (6, 4))
    below = dolfinx.mesh.locate_entities_boundary(before, 1, lambda x: np.isclose(x[1], 0) & (x[0] > 0.32))
    left = dolfinx.mesh.locate_entities_boundary(before, 1, lambda x: np.isclose(x[0], -1))
    facets = np.concatenate([below, left])
    order = np.argsort(facets)
    values = np.repeat([7, 8], [below.size, left.size])
    tags = dolfinx.mesh.meshtags(before, 1, facets[order], values[order].astype(np.int32))
    space = dolfinx.fem.functionspace(before, ("Lagrange", 2))
    totals = []
    for where in (lambda x: np.isclose(x[1], 0) & (x[0] > 0.32), 7):
        flux = npde.Flux(2.0, where)
        top = npde.Dirichlet(lambda x, t: 1 + t, lambda x: np.isclose(x[1], 1))
        equation = npde.physics.heat(0.1)
        problem = npde.FEM(equation, space, [npde.Periodic(0), flux], facet_tags=tags)
        out = problem.new_state()
        problem.rate(0.0, problem.initial(1.0), out)
        totals.append(COMM.allreduce(out.sum()))
        problem = npde.FEM(equation, space, [npde.Periodic(0), flux, top], facet_tags=tags)
        assert COMM.allreduce(problem.constrained.size) == 2 * 6
        other = problem.with_equation(npde.physics.heat(0.2))
        assert other.mesh is problem.mesh and other.constrained.size == problem.constrained.size
        state = problem.initial(0.0)
        problem.constrain(0.5, state)
        at_top = np.isclose(problem.coordinates()[:, 1], 1)
        np.testing.assert_array_equal(state, np.where(at_top, 1.5, 0.0))
    # From x = 1/3 to 1, up to the seam: no facet is lost there.
    np.testing.assert_allclose(totals, 2.0 * 2 / 3, rtol=1e-12)
    try:
        npde.FEM(npde.physics.heat(), space, [npde.Periodic(0), npde.Flux(1.0, 8)], facet_tags=tags)
    except ValueError as error:
        assert "selects nothing" in str(error), error
    else:
        raise AssertionError("a side that was glued has kept its tag")


def check_data():
    """Initial data in every form give one state."""
    axes = (0, 1)
    before = box("quadrilateral")
    space = dolfinx.fem.functionspace(before, ("Lagrange", 2))
    given = dolfinx.fem.Function(space, dtype=np.float64)
    given.interpolate(bump)
    given.x.scatter_forward()
    field = npde.Parameter("D", given, field=True)
    problem = npde.FEM(npde.physics.heat(field), space, [npde.Periodic(a) for a in axes])
    other = npde.FEM(npde.physics.heat(), problem.space, [npde.Periodic(1)])
    assert other.mesh is problem.mesh and other.space is problem.space
    reference = problem.initial(bump)
    np.testing.assert_allclose(problem.initial(given), reference, rtol=0, atol=1e-13)
    np.testing.assert_allclose(problem.initial(reference), reference, rtol=0, atol=0)
    np.testing.assert_allclose(problem.initial(problem.function(reference)), reference, rtol=0, atol=0)
    np.testing.assert_allclose(problem.field_values("D"), reference, rtol=0, atol=1e-13)
    coarse = dolfinx.fem.Function(dolfinx.fem.functionspace(before, ("Lagrange", 1)), dtype=np.float64)
    coarse.interpolate(bump)
    at_nodes = problem.initial(coarse)
    assert 0 < COMM.allreduce(np.abs(at_nodes - reference).max(), op=MPI.MAX) < 0.5


def check_idle_ranks():
    """All cells on the last rank: the others have none, nor a facet, nor a tag."""

    def partition(comm, parts, kinds, cells):
        count = len(cells[0]) // 4
        return dolfinx.graph.adjacencylist(np.full((count, 1), COMM.size - 1, dtype=np.int32))._cpp_object

    kind = dolfinx.mesh.CellType.quadrilateral
    before = dolfinx.mesh.create_unit_square(COMM, 4, 3, kind, partitioner=partition)
    own = before.topology.index_map(2).size_local
    assert own == (12 if COMM.rank == COMM.size - 1 else 0)
    bottom = dolfinx.mesh.locate_entities_boundary(before, 1, lambda x: np.isclose(x[1], 0))
    tags = dolfinx.mesh.meshtags(before, 1, bottom, np.full(bottom.size, 3, dtype=np.int32))
    space = dolfinx.fem.functionspace(before, ("Lagrange", 2))
    bcs = [npde.Periodic(0), npde.Dirichlet(1.0, 3), npde.Flux(0.0, lambda x: x[1] > 0.9)]
    problem = npde.FEM(npde.physics.heat(), space, bcs, facet_tags=tags)
    assert problem.n_global == 8 * 7 and problem.mesh.topology.index_map(2).size_local == own
    values = npde.solve(problem, 1.0, t=(0, 1), dt=0.5, rescue=None).values
    np.testing.assert_allclose(values, 1.0, rtol=1e-12)


def main(path):
    for kind, axes in (("interval", (0,)), ("triangle", (0,)), ("quadrilateral", (0, 1)), ("tetrahedron", (0, 1, 2))):
        check_mesh(kind, axes, GHOSTS.shared_facet)
    for kind, axes in (("interval", (0,)), ("triangle", (0, 1)), ("hexahedron", (1,))):
        check_mesh(kind, axes, GHOSTS.none)
    check_boundary()
    check_data()
    check_idle_ranks()
    results = {
        f"{kind} {axes} {degree}": solved(kind, axes, degree)
        for kind, axes, degree in (
            ("interval", (0,), 1),
            ("triangle", (0,), 3),
            ("quadrilateral", (0, 1), 2),
            ("tetrahedron", (0, 1, 2), 2),
            ("hexahedron", (0, 2), 1),
        )
    }
    if COMM.rank == 0:
        np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
