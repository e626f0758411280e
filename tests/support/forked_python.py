# SPDX-License-Identifier: MIT
"""Run code in a process forked from one that has imported PyTorch once for all tests of a worker.

Unless asked for, nothing else is imported in that process: transformers and huggingface_hub read the environment when
they are. Run as a script, this file is the process that forks: its arguments are further modules to import, requests
come as lines of JSON, exit codes go back.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
import types
import warnings
from pathlib import Path

PRELOADED = ["torch", "torch._dynamo", "torch.distributed.fsdp", "scipy.optimize"]  # what transformers imports of them


def run_code(code: str, environment: dict, folder: str, cwd: str) -> int:
    """Run the code as `python -W error::UserWarning -c` does; its output goes to files in the folder."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # asked of the environment anew
    sys.argv = ["-c"]
    sys.path[0] = ""
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    warnings.resetwarnings()
    warnings.simplefilter("error", UserWarning)
    try:
        exec(compile(code, "<string>", "exec"), vars(main))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """Fork a process for each request on standard input, and write its exit code to standard output."""
    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            status = run_code(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


@functools.cache
def server(*modules: str) -> subprocess.Popen:
    """Start a process that forks; it ends with this one, when its standard input is closed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} if modules else None
    return subprocess.Popen([sys.executable, __file__, *modules], env=environment, **pipes)


def run_forked(code: str, environment: dict, folder: Path, *modules: str, cwd: Path | None = None) -> tuple:
    """Return the exit code, the standard output and the errors.

    Args:
        code: to run.
        environment: variables of its process.
        folder: for the files of its output.
        modules: imported before, once for all calls with the same ones.
        cwd: working directory; this process's own if None.
    """
    request = {"code": code, "environment": environment, "folder": str(folder), "cwd": str(cwd or os.getcwd())}
    forking = server(*modules)
    forking.stdin.write(json.dumps(request) + "\n")
    forking.stdin.flush()
    status = int(forking.stdout.readline())
    return status, *((folder / name).read_text() for name in ("stdout", "stderr"))


if __name__ == "__main__":
    serve()
