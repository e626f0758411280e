# SPDX-License-Identifier: MIT
"""Run the tests of the CPU kernels on another build of the library."""

from pathlib import Path

import pytest

from hf_internimage.ops import native
from support.paths import TESTS

_CHOSEN = "search or (golden and -cpu]) or exact_arithmetic or without_pixels or equals_its_modules or in_any_memory"
_CHOSEN += " or (strides and cpu) or operators_refuse"


def run_kernel_tests(library):
    """Run the original's cases, the searches, and what goes to the borders of memory; return pytest's status.

    The process must not have loaded another build.
    """
    native.PATH = Path(library)
    print("Instruction set:", native.library().hfi_instruction_set().decode(), flush=True)
    names = ("native", "dcnv3_golden", "dcnv3_backends", "fused_cpu")
    files = [str(TESTS / "ops" / f"test_{name}.py") for name in names]
    # The package imports anyio before pytest does, which has a plugin in it.
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
    status = pytest.main([*options, "-k", _CHOSEN, *files])
    assert native.library()._name == str(library)
    return status
