"""The conformance kit: golden tensors that another backend's are compared with.

``docs/kit.md`` describes a kit's files. :func:`open_kit` reads one,
:func:`verify` compares.
"""

from bert_numpy.kit.manifest import Kit, open_kit
from bert_numpy.kit.verify import Report, verify

__all__ = ["Kit", "Report", "open_kit", "verify"]
