"""Compare the accumulators of tensor cores with MMA-Sim, bit for bit, and time both.

    python scripts/compare_mmasim.py [--tiles N] [--seed S] [--only NAME,...]
    python scripts/compare_mmasim.py --time [--rounds N]

MMA-Sim (PyPI ``mmasim``, Microsoft; arXiv 2511.10909) describes the instructions of the
devices on which its authors ran them. Every accumulator is compared with each instruction that
it stands for, in every pair of operand types, on N tiles of ten kinds of data.
"""
