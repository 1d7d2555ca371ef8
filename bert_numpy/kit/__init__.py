"""The conformance kit: golden tensors that another backend's are compared with.

``docs/kit.md`` describes a kit's files. :func:`open_kit` reads one,
:func:`bert_numpy.kit.verify.verify` compares.
"""

from bert_numpy.kit.manifest import Kit, open_kit


__all__ = ["Kit", "open_kit"]
