# SPDX-License-Identifier: MIT
"""DCNv3 in the compiled CPU library, forward and backward, softmax included: the operator's own kernel on the CPU."""

from .. import native
from ..registry import Call, wrong_dtype


def why_not(call: Call) -> str | None:
    """Return None if this backend can run `call`, else the reason."""
    return wrong_dtype(call) or native.why_not()
