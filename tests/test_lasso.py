"""The coefficient problem's solvers against its optimality conditions, one another and scikit-learn's.

Seeds are fixed; everything is deterministic and in float64 unless a test says otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import Lasso, orthogonal_mp
from torch import Tensor

from lightning_modules.lasso import DESCENTS, solve
from lightning_modules.lasso_descent import FISTA, PlainFISTA
from lightning_modules.lasso_problem import Problem, largest_eigenvalue

L1_SOLVERS: list[Any] = [*DESCENTS, "lars", "feature_sign"]
EVERY_SOLVER: list[Any] = [*L1_SOLVERS, "omp"]
EXACT = {"tolerance": 1e-8, "max_steps": 20_000}


def problem(num_visible: int = 16, num_hidden: int = 24, share: float = 0.2, nonnegative: bool = False) -> Problem:
    """30 random vectors; λ is a share of what makes the typical code zero."""
    torch.manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(num_hidden, num_visible, dtype=torch.double), dim=1)
    v = torch.randn(30, num_visible, dtype=torch.double)
    return Problem(v, dictionary, share * float((v @ dictionary.T).abs().amax(1).median()), nonnegative)


def solved(given: Problem, solver: Any, **more: Any) -> Tensor:
    found = solve(
        given.v, given.dictionary, given.penalty, solver=solver, nonnegative=given.nonnegative, **EXACT | more
    )
    assert found.converged.all()
    return found.codes


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("sizes", [(16, 24), (24, 12), (10, 40)], ids=str)
def test_all_solvers_reach_one_objective_and_satisfy_its_conditions(sizes: tuple[int, int], nonnegative: bool) -> None:
    """Relative differences below 1e-6, and |c_j| ≤ λ off the support, c_j = λ sign(h_j) on it, to 1e-4 of λ."""
    given = problem(*sizes, nonnegative=nonnegative)
    objectives = {}
    for solver in L1_SOLVERS:
        codes = solved(given, solver)
        objectives[solver] = given.objective(codes)
        c = (given.v - codes @ given.dictionary) @ given.dictionary.T / given.penalty
        off, on = codes == 0, codes != 0
        assert (c if nonnegative else c.abs())[off].max() <= 1 + 1e-4, solver
        torch.testing.assert_close(c[on], codes[on].sign(), rtol=0, atol=1e-4, msg=solver)
        assert given.kkt_residual(codes).max() <= 1e-4, solver
        assert not nonnegative or codes.min() >= 0, solver
        assert 0.05 < on.double().mean() < 0.8  # neither dense nor empty
    for solver, found in objectives.items():
        torch.testing.assert_close(found, objectives["lars"], rtol=1e-6, atol=0, msg=solver)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_conditions_and_gap_tell_the_optimum_from_anything_else(nonnegative: bool) -> None:
    """The gap bounds how far above the optimum codes are, and both it and the residual are zero only there."""
    given = problem(nonnegative=nonnegative)
    best = solved(given, "lars")
    for noise in (1e-3, 1e-2, 0.1, 1.0):
        codes = best + noise * (torch.rand_like(best) if nonnegative else torch.randn_like(best))
        above = 1 - given.objective(best) / given.objective(codes)
        assert (above > 0).all() and (given.gap(codes) >= above).all() and (given.kkt_residual(codes) > 1e-4).all()
    assert given.gap(best).max() < 1e-10


@pytest.mark.parametrize("solver", L1_SOLVERS)
def test_as_scikit_learn(solver: Any) -> None:
    """`sparse_encode` by LARS and by coordinate descent, `Lasso` (whose squares are divided by their number)."""
    given = problem(20, 30)
    codes = solved(given, solver)
    v, atoms = given.v.numpy(), given.dictionary.numpy()
    for algorithm in ("lasso_lars", "lasso_cd"):
        peer = torch.from_numpy(sparse_encode(v, atoms, algorithm=algorithm, alpha=given.penalty, max_iter=100_000))
        torch.testing.assert_close(given.objective(codes), given.objective(peer), rtol=1e-6, atol=0)
    for positive in (False, True):
        ours = solved(problem(20, 30, nonnegative=positive), solver)
        lasso = Lasso(alpha=given.penalty / 20, fit_intercept=False, positive=positive, tol=1e-12, max_iter=100_000)
        peer = torch.from_numpy(np.stack([lasso.fit(atoms.T, row).coef_ for row in v]))
        torch.testing.assert_close(ours, peer, rtol=0, atol=1e-4 * float(peer.abs().max()))


@pytest.mark.parametrize("number", [1, 3, 8])
def test_matching_pursuit_is_scikit_learns(number: int) -> None:
    given = problem(20, 30)
    found = solve(given.v, given.dictionary, 1e-6, solver="omp", max_steps=number)
    peer = orthogonal_mp(given.dictionary.numpy().T, given.v.numpy().T, n_nonzero_coefs=number).T
    assert torch.equal(found.steps, torch.full((30,), number))
    torch.testing.assert_close(found.codes, torch.from_numpy(peer), rtol=0, atol=1e-10)


def test_matching_pursuit_stops_where_no_atom_agrees_more_than_the_penalty() -> None:
    given = problem(20, 30, share=0.5)
    codes = solve(given.v, given.dictionary, given.penalty, solver="omp").codes
    c = (given.v - codes @ given.dictionary) @ given.dictionary.T
    assert c.abs().max() <= given.penalty
    assert c[codes != 0].abs().max() < 1e-9  # and what it took is fitted exactly
    assert len(set((codes != 0).sum(1).tolist())) > 1


@pytest.mark.parametrize("descent", [PlainFISTA, FISTA])
@pytest.mark.parametrize("start", ["zeros", "elsewhere"])
def test_fista_keeps_its_bound_at_every_step(descent: type[FISTA], start: str) -> None:
    """F(h_k) − F* ≤ 2 L ‖h₀ − h*‖² / (k + 1)² (Beck & Teboulle 2009, theorem 4.4); L is no looser than 4 %."""
    given = problem(10, 60, share=0.05)
    best = solved(given, "lars")
    optimum = given.objective(best)
    begin = torch.zeros_like(best) if start == "zeros" else 3 * torch.randn_like(best)
    distance = (begin - best).square().sum(1)
    assert given.curvature <= 1.04 * torch.linalg.matrix_norm(given.dictionary, 2) ** 2
    walk = descent(given, begin)
    for k in range(1, 400):
        walk.step()
        bound = 2 * given.curvature * distance / (k + 1) ** 2
        assert (given.objective(walk.codes) - optimum <= bound + 1e-12).all(), k


def test_largest_eigenvalue_is_bounded_from_above_and_closely() -> None:
    torch.manual_seed(0)
    for matrix in (torch.randn(30, 80), torch.eye(150), torch.ones(3, 5), 1e-3 * torch.randn(80, 7)):
        true = float(torch.linalg.matrix_norm(matrix.double(), 2) ** 2)
        assert true <= largest_eigenvalue(matrix) <= 1.04 * true
    assert largest_eigenvalue(torch.zeros(3, 4)) > 0


@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_degenerate_problems(solver: Any) -> None:
    """A zero vector, a penalty above every correlation, equal, opposite and zero atoms, a single row."""
    given = problem(8, 12, share=0.3)
    v = torch.cat([torch.zeros(1, 8, dtype=torch.double), given.v])
    atoms = given.dictionary
    twins = torch.cat([atoms, atoms[:3], -atoms[3:6], torch.zeros(1, 8, dtype=torch.double)])
    codes = solve(v, twins, given.penalty, solver=solver, **EXACT)
    single = solve(v, atoms, given.penalty, solver=solver, **EXACT)
    assert codes.codes.isfinite().all() and (codes.codes[:, -1] == 0).all() and (codes.codes[0] == 0).all()
    if solver != "omp":
        assert codes.converged.all()
        twice, once = Problem(v, twins, given.penalty), Problem(v, atoms, given.penalty)
        torch.testing.assert_close(twice.objective(codes.codes), once.objective(single.codes), rtol=1e-6, atol=0)
    above = float((v @ atoms.T).abs().max()) * 1.001
    nothing = solve(v, atoms, above, solver=solver, **EXACT)
    assert (nothing.codes == 0).all() and (nothing.steps == 0).all() and (nothing.gap < 1e-12).all()
    alone = solve(v[3:4], atoms, given.penalty, solver=solver, **EXACT)
    torch.testing.assert_close(alone.codes, single.codes[3:4], rtol=0, atol=1e-5)
    assert solve(v[:0], atoms, given.penalty, solver=solver).codes.shape == (0, 12)


@pytest.mark.parametrize("solver", L1_SOLVERS)
def test_a_warm_start_changes_the_way_and_not_the_end(solver: Any) -> None:
    given = problem()
    best = solved(given, "lars")
    for start in (best + 0.1 * torch.randn_like(best), best):
        found = solve(given.v, given.dictionary, given.penalty, solver=solver, start=start, **EXACT)
        torch.testing.assert_close(given.objective(found.codes), given.objective(best), rtol=1e-6, atol=0)
    assert solver == "lars" or found.steps.max() <= 1  # begun where it ends


@pytest.mark.parametrize("solver", ["ista", "fista", "coordinate_descent", "lca"])
def test_stops_by_the_gap_and_tells_what_it_did_not_reach(solver: Any) -> None:
    """A looser tolerance takes fewer steps, and the printed gap is that of the printed codes."""
    given = problem()
    steps = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        found = solve(given.v, given.dictionary, given.penalty, solver=solver, tolerance=tolerance, max_steps=20_000)
        assert found.converged.all()
        torch.testing.assert_close(found.gap, given.gap(found.codes))
        steps.append(found.steps.double().mean())
    assert steps[0] < steps[1] < steps[2]
    capped = solve(given.v, given.dictionary, given.penalty, solver=solver, tolerance=1e-9, max_steps=3)
    assert (capped.steps <= 3).all() and not capped.converged.all() and capped.codes.count_nonzero() > 0


@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_rows_do_not_depend_on_one_another(solver: Any) -> None:
    """Also beyond what is solved at a time, and in float32; no gradient comes out."""
    given = problem()
    v, dictionary = given.v.float().repeat(20, 1), given.dictionary.float().requires_grad_()
    many = solve(v, dictionary, given.penalty, solver=solver, tolerance=1e-6)
    few = solve(v[:30], dictionary, given.penalty, solver=solver, tolerance=1e-6)
    assert many.codes.dtype == torch.float32 and not many.codes.requires_grad
    torch.testing.assert_close(many.codes, few.codes.repeat(20, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"penalty": 0.0}, {"penalty": -1.0}, {"tolerance": 0.0}, {"max_steps": -1}, {"solver": "simplex"},
        {"solver": "omp", "nonnegative": True}, {"start": torch.zeros(2, 4)}, {"dictionary": torch.ones(5, 4)},
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    arguments = {"v": torch.ones(2, 3), "dictionary": torch.ones(5, 3), "penalty": 0.1} | wrong
    with pytest.raises(ValueError) as caught:
        solve(**arguments)
    assert "\n" not in str(caught.value)
