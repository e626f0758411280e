# SPDX-License-Identifier: MIT
"""Run code in a process forked from one that has imported PyTorch, and nothing else, once for all tests of a worker.

Neither transformers nor huggingface_hub is imported in that process: they read the environment when they are.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
import types
import warnings
from pathlib import Path

PRELOADED = ["torch", "torch._dynamo", "torch.distributed.fsdp", "scipy.optimize"]  # what transformers imports of them


def run_code(code: str, environment: dict, folder: Path, path: list[str]) -> None:
    """Run the code as `python -W error::UserWarning -c` does; its output goes to files in the folder."""
    sys.path[:] = path
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # ask the environment again
    sys.argv = ["-c"]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    warnings.resetwarnings()
    warnings.simplefilter("error", UserWarning)
    try:
        exec(compile(code, "<string>", "exec"), vars(main))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def run_forked(code: str, environment: dict, folder: Path) -> tuple[int, str, str]:
    """Return the exit code, the standard output and the errors."""
    from transformers.utils import HF_MODULES_CACHE  # not above: the new process imports this file

    path = [entry for entry in sys.path if entry != HF_MODULES_CACHE]  # another test's code from repositories
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run_code, args=(code, environment, folder, path))
    process.start()
    process.join()
    return process.exitcode, *((folder / name).read_text() for name in ("stdout", "stderr"))
