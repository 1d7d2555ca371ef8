"""Find the coefficients of ``bert_numpy.elementwise.gelu`` and print them with their error.

GELU(x) = x Phi(x) = max(x, 0) - a Q(a) with a = |x| and Q = 1 - Phi the normal
tail. Q(a) exp(a^2 / 2) is smooth and falls slowly, so a polynomial of degree 6
in t = 1 / (1 + s a), without a constant, fits it (the form of Hastings'
approximations, Abramowitz and Stegun 7.1.26). The fit minimises the largest
absolute error of GELU itself: least squares, reweighted towards the maxima
(Lawson's algorithm), the best step kept.

    python scripts/fit_gelu.py
"""

import math

import numpy as np

DEGREE = 6
STEPS = 400


def fit(s: float) -> tuple[float, np.ndarray]:
    """The largest absolute error for one ``s``, and the coefficients of t^1 .. t^DEGREE."""
    a = np.concatenate([np.linspace(0, 6, 3000), np.linspace(6, 14, 300)[1:]])
    decay = np.exp(-a * a / 2)
    tail = np.array([0.5 * math.erfc(v / math.sqrt(2)) for v in a])
    weight = np.maximum(a, 0.05) * decay  # the error of GELU is a times that of Q
    powers = (1 / (1 + s * a))[:, None] ** np.arange(1, DEGREE + 1)
    emphasis = np.ones_like(a)
    best = (math.inf, np.zeros(DEGREE))
    for _ in range(STEPS):
        row = np.sqrt(emphasis) * weight
        solution = np.linalg.lstsq(powers * row[:, None], tail / decay * row, rcond=None)[0]
        error = np.abs((powers @ solution - tail / decay) * weight)
        best = min(best, (float(error.max()), solution), key=lambda pair: pair[0])
        emphasis *= error / error.max()
        emphasis = np.maximum(emphasis / emphasis.max(), 1e-14)
    return best


if __name__ == "__main__":
    candidates = {s: fit(s) for s in np.round(np.arange(0.36, 0.44, 0.005), 3)}
    s = min(candidates, key=lambda s: candidates[s][0])
    error, coefficients = candidates[s]
    print(f"s = {s}, largest error of GELU in exact arithmetic {error:.2e}")
    for power, coefficient in enumerate(coefficients, 1):
        print(f"t^{power}: {coefficient:.9g}")
