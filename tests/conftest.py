# SPDX-License-Identifier: MIT
"""What every test runs under: no Hub, few threads, a fixed seed."""

import contextlib
import functools
import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Waiting OpenMP threads spin: two test processes with two threads each are many times slower than with one.
THREADS = max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
THREADS = min(THREADS, int(os.environ.get("OMP_NUM_THREADS") or THREADS))
os.environ["OMP_NUM_THREADS"] = str(THREADS)

with contextlib.suppress(ImportError):
    # torch.compile's C++ builder imports setuptools, which insists on coming before anything imports distutils.
    import setuptools  # noqa: F401

import pytest
import torch
import transformers
from support.operator_cases import CPU_BACKENDS

import hf_internimage  # noqa: F401  # registers with the Auto classes
from hf_internimage import ops
from hf_internimage.ops import native

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    torch.compiler.reset()


@pytest.fixture(autouse=True, scope="module")
def _short_garbage_collections():
    """Exempt what lives on after a module (imports, compiled graphs) from later collections, which grow to seconds."""
    gc.collect()
    gc.freeze()


def pytest_configure():
    """Fail at once where tests that `make test-latest` must run would be skipped."""
    if os.environ.get("HF_INTERNIMAGE_TEST_REQUIRE") == "torchvision":
        from support.rcnn_tools import why_no_torchvision

        if reason := why_no_torchvision():
            raise pytest.UsageError(f"HF_INTERNIMAGE_TEST_REQUIRE is torchvision, but {reason}")


def pytest_unconfigure():
    """Let Python free everything at its end, as usual."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _verbosity_comes_back():
    """Scripts set it."""
    level = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.fixture(params=CPU_BACKENDS)
def dcnv3(request):
    """The operator, on each backend in turn."""
    return functools.partial(ops.dcnv3, backend=request.param)


@pytest.fixture
def threads():
    """Sets PyTorch's number of threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def instruction_set(request):
    """Each instruction set of the library that this processor has."""
    if native.why_not():
        pytest.skip(f"the cpu backend {native.why_not()}")
    library = native.library()
    before = library.hfi_instruction_set()
    if library.hfi_use_instruction_set(request.param.encode()):
        pytest.skip(f"this build or processor has no {request.param}")
    assert library.hfi_instruction_set() == request.param.encode()
    yield request.param
    assert library.hfi_use_instruction_set(before) == 0


@pytest.fixture
def nan_memory():
    """New memory holds NaN, so that an output nobody wrote cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def tiny_t(tmp_path):
    """A folder with a good checkpoint in the original's layout, good.pth, and its configuration, config.json."""
    from support.conversion_tools import original, save_config
    from support.golden_data import golden_weights

    torch.save({"model": original(golden_weights("tiny_t"))}, tmp_path / "good.pth")
    save_config(tmp_path / "config.json", "tiny_t")
    return tmp_path
