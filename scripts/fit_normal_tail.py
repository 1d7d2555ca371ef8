"""Find the coefficients of ``npfp8.elementary``'s normal tail and print them.

Q(a), the normal distribution's upper tail, is ``exp(-a^2 / 2) F(a)`` with F
smooth, F(0) = 1/2 and F(a) ~ 1 / (a sqrt(2 pi)). So (1 + 2 a) F(a) varies
little. Its Chebyshev series in t = (a - 3.75) / (a + 3.75), which maps 0 .. infinity to
-1 .. 1, converges fast. This is the form of Shepherd and Laframboise,
Mathematics of Computation 36, 1981.

    python scripts/fit_normal_tail.py     # needs mpmath
"""

import argparse

import mpmath as mp

COUNT = 26
NODES = 60
CENTRE = mp.mpf("3.75")


def scaled_tail(a: mp.mpf) -> mp.mpf:
    """Compute (1 + 2 a) F(a), by its asymptotic series where exp(a^2 / 2) is too large."""
    if a > 1000:
        series = mp.nsum(lambda n: (-1) ** int(n) * mp.fac2(2 * n - 1) / a ** (2 * n), [0, 8])
        return (1 + 2 * a) / (a * mp.sqrt(2 * mp.pi)) * series
    return (1 + 2 * a) * mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    mp.mp.dps = 50
    angles = [mp.pi * (2 * i + 1) / (2 * NODES) for i in range(NODES)]
    values = [scaled_tail(CENTRE * (1 + mp.cos(x)) / (1 - mp.cos(x))) for x in angles]
    coefficients = [
        2 * sum(v * mp.cos(j * x) for v, x in zip(values, angles, strict=True)) / NODES
        for j in range(NODES)
    ]
    coefficients[0] /= 2
    cut_off = sum(abs(c) for c in coefficients[COUNT:])
    print(f"{COUNT} coefficients; those cut off add up to {mp.nstr(cut_off, 2)}")
    for coefficient in coefficients[:COUNT]:
        print(f"    {float(coefficient)!r},")
