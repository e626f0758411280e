# SPDX-License-Identifier: MIT
"""The common tests of transformers, from the source distribution that `make test-transformers` unpacks.

The distribution has `tests/test_*.py`, but not all that they import. What is missing, and plays no part for models of
images, is stood in for.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from unittest import mock

import pytest
import transformers
from PIL import Image

from .paths import ROOT

SOURCE = ROOT / "build" / f"transformers-{transformers.__version__}"
_PACKAGE = "transformers_source_tests"
_STAND_INS = {
    f"{_PACKAGE}.exporters": {},
    f"{_PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{_PACKAGE}.generation": {},
    f"{_PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{_PACKAGE}.utils": {},
    f"{_PACKAGE}.utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "dtype": "float16",
            "architectures": ["BertModel"],
            "id2label": {0: "label"},
            "label2id": {"label": "0"},
            "problem_type": "regression",
            "chunk_size_feed_forward": 5,
        }
    },
    # in place of a photograph on the Hub
    "fetch_hub_objects_for_ci": {
        "url_to_local_path": lambda url: Image.effect_mandelbrot((160, 120), (-2, -1, 1, 1), 90).convert("RGB")
    },
}


def why_not() -> str | None:
    """Return why the tests of transformers cannot be imported, or None."""
    if not (SOURCE / "tests").is_dir():
        return f"no tests of transformers {transformers.__version__}: `make test-transformers` fetches and runs them"
    return None if importlib.util.find_spec("parameterized") else "the package parameterized is missing"


def load(name: str) -> ModuleType:
    """Import one of the modules of the tests, such as "test_modeling_common"."""
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(SOURCE / "tests")]
    sys.modules.setdefault(_PACKAGE, package)
    for module, names in _STAND_INS.items():
        if module not in sys.modules:
            sys.modules[module] = ModuleType(module)
            vars(sys.modules[module]).update(names, __path__=[])
    # Their markers are registered by a conftest.py that is not distributed.
    with mock.patch.object(pytest.mark, "_config", None), mock.patch("transformers.utils.direct_transformers_import"):
        return importlib.import_module(f"{_PACKAGE}.{name}")
