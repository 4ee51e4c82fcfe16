"""The head in dual form: Bradley-Terry, logistic and least-squares rows in one convex problem.

With the Gram matrix G (m, m) of the rows, u = G beta is what the head says of each row, and

    sum_i w_i loss_i(u_i) + lambda / 2 beta^T G beta

is smallest where lambda beta_i = -w_i loss_i'(u_i). loss(u) = log(1 + exp(-y u)) for clicks
(Bradley-Terry for differences), (u - y)^2 / 2 for stars. The same head in primal form has weights
beta^T times the rows of features, and costs the same.

References:
    Rank analysis of incomplete block designs (Bradley and Terry, 1952); Gaussian Processes for
    Machine Learning (Rasmussen and Williams, 2006), algorithm 3.1 for the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Rows

__all__ = ["LAMBDAS", "gram_of", "losses", "mean_diagonal", "solve"]

LAMBDAS = tuple(10 ** (power / 2) for power in range(2, -7, -1))
"""Strengths that are tried, 10 to 0.001 of the mean diagonal of G, strongest first."""
_LEVEL = 10.0
"""Variance of the level of single pictures, in the mean diagonal: hardly held back."""
_MOST_STEPS = 60


def mean_diagonal(gram: Tensor) -> float:
    """The unit of lambda; 1 for an empty or a zero matrix."""
    mean = float(gram.diagonal().mean()) if len(gram) else 0.0
    return mean if mean > 0 else 1.0


def gram_of(kernel: Tensor, rows: Rows) -> Tensor:
    """Kernel of pictures (n, n) -> Gram matrix of rows (m, m); single ones share a level."""
    gram = rows.matrix @ kernel @ rows.matrix.T
    single = rows.is_single.double()
    return gram + _LEVEL * mean_diagonal(gram) * torch.outer(single, single)


def solve(
    gram: Tensor,
    rows: Rows,
    strength: float,
    weights: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-8,
) -> Tensor:
    """Find beta, (m,), by Newton's steps, halved where they overshoot.

    Args:
        gram: (m, m), float64.
        rows: Targets and kinds.
        strength: lambda.
        weights: w, (m,); 1 for all by default.
        start: A beta near the solution, such as that of another lambda.
        tolerance: Largest change of u at the end.
    """
    weights = torch.ones_like(rows.targets) if weights is None else weights.double()
    beta = torch.zeros_like(rows.targets) if start is None else start
    u = gram @ beta
    eye = torch.eye(len(gram), dtype=gram.dtype)
    value = _objective(u, beta, rows, strength, weights)
    for _ in range(_MOST_STEPS):
        slope, curvature = _derivatives(u, rows)
        root = (weights * curvature).sqrt()
        inner = eye + root[:, None] * gram * root / strength
        b = weights * curvature * u - weights * slope
        factor = torch.linalg.cholesky(inner)
        half = torch.cholesky_solve((root * (gram @ b) / strength)[:, None], factor)[:, 0]
        step = (b - root * half) / strength - beta
        change = gram @ step
        length = 1.0
        while length > 1e-4:
            there = _objective(u + length * change, beta + length * step, rows, strength, weights)
            if there <= value + 1e-12 * abs(value):
                break
            length /= 2
        beta, u, value = beta + length * step, u + length * change, there
        if not len(change) or float(change.abs().max()) * length < tolerance:
            break
    return beta


def _derivatives(u: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    wrong = torch.sigmoid(-rows.targets * u)
    slope = torch.where(rows.is_number, u - rows.targets, -rows.targets * wrong)
    curvature = torch.where(rows.is_number, 1.0, (wrong * (1 - wrong)).clamp(min=1e-12))
    return slope, curvature


def losses(u: Tensor, rows: Rows) -> Tensor:
    """Loss of each row, (..., m), for what a head says of it, (..., m)."""
    logistic = torch.nn.functional.softplus(-rows.targets * u)
    return torch.where(rows.is_number, (u - rows.targets).square() / 2, logistic)


def _objective(u: Tensor, beta: Tensor, rows: Rows, strength: float, weights: Tensor) -> float:
    return float((weights * losses(u, rows)).sum() + strength / 2 * beta @ u)
