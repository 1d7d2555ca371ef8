"""Adapting a model to the texts that it meets, by forward passes alone.

Source: Niu et al., *Test-Time Model Adaptation with Only Forward Passes* (arXiv 2404.01650).
"""
