"""Estimators as double loops in float64, close to the papers' notation: what the fast ones are compared with.

A trajectory ends with the first step that is cut; sums and products run to there and no further. All arguments are
lists of floats of one row; `term` and `cut` are lists of booleans.
"""

from collections.abc import Sequence
from math import prod

Row = Sequence[float]
Flags = Sequence[bool]


def end(cut: Flags, t: int) -> int:
    """The last step of the trajectory that step t belongs to."""
    return next(u for u in range(t, len(cut)) if cut[u])


def delta(r: Row, v: Row, vn: Row, term: Flags, g: float, t: int) -> float:
    """TD error."""
    return r[t] + (0.0 if term[t] else g * vn[t]) - v[t]


def gae(r: Row, v: Row, vn: Row, term: Flags, cut: Flags, g: float, lam: float) -> list[float]:
    """A_t = sum_k (g lam)^k delta_{t+k}."""
    return [
        sum((g * lam) ** (u - t) * delta(r, v, vn, term, g, u) for u in range(t, end(cut, t) + 1))
        for t in range(len(r))
    ]


def n_step(r: Row, vn: Row, term: Flags, cut: Flags, g: float, n: int) -> list[float]:
    """G_t = sum of m rewards, then V."""
    out = []
    for t in range(len(r)):
        m = min(n, end(cut, t) - t + 1)
        last = t + m - 1
        tail = 0.0 if term[last] else g**m * vn[last]
        out.append(sum(g**k * r[t + k] for k in range(m)) + tail)
    return out


def td_lambda(r: Row, vn: Row, term: Flags, cut: Flags, g: float, lam: float) -> list[float]:
    """(1 - lam) sum_n lam^(n-1) G^(n), the rest of the weight on the longest."""
    out = []
    for t in range(len(r)):
        longest = end(cut, t) - t + 1
        returns = [n_step(r, vn, term, cut, g, n)[t] for n in range(1, longest + 1)]
        total = sum((1 - lam) * lam ** (n - 1) * returns[n - 1] for n in range(1, longest))
        out.append(total + lam ** (longest - 1) * returns[-1])
    return out


def vtrace(
    rho: Row, r: Row, v: Row, vn: Row, term: Flags, cut: Flags, g: float, lam: float, rho_bar: float, c_bar: float
) -> tuple[list[float], list[float]]:
    """(advantages, targets): Espeholt 2018, eq. 1 as a sum of products."""
    targets = []
    for t in range(len(r)):
        total = v[t]
        for u in range(t, end(cut, t) + 1):
            trace = prod(lam * min(c_bar, rho[i]) for i in range(t, u))
            total += g ** (u - t) * trace * min(rho_bar, rho[u]) * delta(r, v, vn, term, g, u)
        targets.append(total)
    after = [vn[t] if cut[t] else targets[t + 1] for t in range(len(r))]
    q = [r[t] + (0.0 if term[t] else g * after[t]) for t in range(len(r))]
    return [min(rho_bar, rho[t]) * (q[t] - v[t]) for t in range(len(r))], targets


def retrace(rho: Row, r: Row, v: Row, vn: Row, term: Flags, cut: Flags, g: float, lam: float) -> list[float]:
    """A_t = sum_u (g lam)^(u-t) prod_{t<i<=u} min(1, rho_i) delta_u."""
    return [
        sum(
            (g * lam) ** (u - t) * prod(min(1.0, rho[i]) for i in range(t + 1, u + 1)) * delta(r, v, vn, term, g, u)
            for u in range(t, end(cut, t) + 1)
        )
        for t in range(len(r))
    ]


def clipped_is(
    rho: Row, r: Row, v: Row, vn: Row, term: Flags, cut: Flags, g: float, lam: float, eps: float
) -> list[float]:
    """A_t = sum_u (g lam)^(u-t) prod_{t<=i<=u} w_i delta_u."""
    w = [min(max(x, 1 - eps), 1 + eps) for x in rho]
    return [
        sum(
            (g * lam) ** (u - t) * prod(w[i] for i in range(t, u + 1)) * delta(r, v, vn, term, g, u)
            for u in range(t, end(cut, t) + 1)
        )
        for t in range(len(r))
    ]
