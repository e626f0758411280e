# SPDX-License-Identifier: MIT
"""Names that the command line repeats are those of the library."""

from hf_internimage import InternImageConfig
from hf_internimage.conversion import SIZES
from hf_internimage.devices import DTYPES
from hf_internimage.exporting import TARGETS
from hf_internimage.ops.dcnv3 import DCNV3
from hf_internimage.ops.registry import BACKEND_VARIABLE
from hf_internimage.training.detection.main import HEADS as DETECTORS
from hf_internimage.training.segmentation.main import HEADS as SEGMENTERS
from hf_internimage_cli import names
from hf_internimage_cli.evaluate import _BACKEND_VARIABLE


def test_names_are_the_librarys():
    assert list(names.SIZES) == list(SIZES)
    assert all(InternImageConfig.from_size(size) for size in names.SIZES)
    assert {"segmentation": tuple(SEGMENTERS), "detection": tuple(DETECTORS)} == names.HEADS
    assert list(names.DTYPES) == list(DTYPES)
    assert list(names.EXPORT_TARGETS) == list(TARGETS)
    assert list(names.BACKENDS) == list(DCNV3.backends)
    assert _BACKEND_VARIABLE == BACKEND_VARIABLE
