"""Find the coefficients of ``bert_numpy.engines.functions.gelu`` and print them with their error.

GELU(x) = x Phi(x) = max(x, 0) - a Q(a) with a = |x| and Q = 1 - Phi the normal
tail. Although 1 / Q(a) grows like exp(a^2 / 2), its eighth root is so smooth that a
polynomial p of degree 8 fits it: Q(a) = 1 / p(a)^8. This is the form of Hastings'
approximations (Abramowitz and Stegun 7.1.28). It needs only multiplications,
additions and one division. The fit minimises the largest absolute error
of GELU itself, by least squares reweighted towards the maxima (Lawson's
algorithm), and keeps the best step. Q(0) = 1 / 2 is kept exactly.

    python scripts/fit_gelu.py
"""

import argparse
import math

import numpy as np

DEGREE = 8
POWER = 8
STEPS = 2000


def fit() -> tuple[float, np.ndarray]:
    """Return the largest absolute error, and the coefficients of a^0 .. a^DEGREE."""
    a = np.concatenate([np.linspace(0, 6, 3000), np.linspace(6, 10, 200)[1:]])
    tail = np.array([0.5 * math.erfc(v / math.sqrt(2)) for v in a])
    root = tail ** (-1 / POWER)
    constant = 2 ** (1 / POWER)
    # The error of GELU is a times the error of Q, and that is POWER root^-(POWER + 1) times the
    # error of the root.
    weight = np.maximum(a, 0.05) * POWER * root ** (-POWER - 1)
    powers = a[:, None] ** np.arange(1, DEGREE + 1)
    emphasis = np.ones_like(a)
    best = (math.inf, np.zeros(DEGREE))
    for _ in range(STEPS):
        row = np.sqrt(emphasis) * weight
        solution = np.linalg.lstsq(powers * row[:, None], (root - constant) * row, rcond=None)[0]
        found = powers @ solution + constant
        error = np.abs(a * (found**-POWER - tail))
        best = min(best, (float(error.max()), solution), key=lambda pair: pair[0])
        slope = np.abs(found - root) * weight
        emphasis *= slope / slope.max()
        emphasis = np.maximum(emphasis / emphasis.max(), 1e-14)
    return best[0], np.concatenate([[constant], best[1]])


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    error, coefficients = fit()
    print(f"largest error of GELU in exact arithmetic {error:.2e}")
    for power, coefficient in enumerate(coefficients):
        print(f"a^{power}: {coefficient:.9g}")
