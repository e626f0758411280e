# SPDX-License-Identifier: MIT
"""What users install: the sdist, wheels with and without the CPU library, editable installs. Needs no network."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import packaging.requirements
import packaging.tags
import packaging.utils
import pytest
from PIL import Image
from support.loading import run_python
from support.loopback_hub import LoopbackHub
from support.operator_cases import CPU_FALLBACK
from support.paths import ROOT

from hf_internimage.ops import native

pytest.importorskip("hatchling", reason="wheels are built by hatchling")
pytest.importorskip("pip", reason="wheels are built and installed by pip")

SWITCH = "HF_INTERNIMAGE_BUILD_CPU"


def load(path):
    """A module outside any package."""
    spec = importlib.util.spec_from_file_location(f"hf_internimage_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dcnv3 = load(ROOT / "kernels" / "dcnv3" / "build.py")
IN_WHEEL = f"hf_internimage/ops/{dcnv3.NAME}"


def has_compiler():
    try:
        dcnv3.find_compiler()
    except dcnv3.BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler here")
needs_shell = pytest.mark.skipif(os.name != "posix", reason="the pretended compiler is a shell script")


def python(*command, cwd=ROOT, fails=False, **environment):
    """Run `python command`; its output, and whether it failed is checked."""
    full = {key: value for key, value in os.environ.items() if key not in (SWITCH, "PYTHONPATH")}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=cwd, env={**full, **environment}, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def pip_wheel(source, folder, **environment):
    """(the wheel that pip builds from `source`, what it said)."""
    options = "--no-deps --no-build-isolation --no-index --disable-pip-version-check --verbose".split()
    said = python("-m", "pip", "wheel", *options, "--wheel-dir", folder, source, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel, said


def hatch_wheel(source, folder, *, editable=False, **environment):
    """(the wheel that hatchling builds from `source`, what it said), without pip's detours."""
    code = f"import hatchling.build, sys; hatchling.build.build_{'editable' if editable else 'wheel'}(sys.argv[1])"
    folder.mkdir(exist_ok=True)
    said = python("-c", code, folder, cwd=source, **environment)
    wheel = max(folder.glob("*.whl"), key=os.path.getmtime)
    return wheel, said


def install(wheel, folder):
    options = "--no-deps --no-index --no-compile --disable-pip-version-check --quiet".split()
    python("-m", "pip", "install", *options, "--target", folder, wheel)


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def is_pure(wheel):
    """Whether the wheel is one for every platform; its name, metadata and contents must agree about that."""
    (tag,) = packaging.utils.parse_wheel_filename(wheel.name)[3]
    pure = tag.platform == "any"
    assert (tag.interpreter, tag.abi) == ("py3", "none")
    assert tag in set(packaging.tags.sys_tags())
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        text = archive.read(metadata).decode()
    assert f"Tag: {tag}\n" in text
    assert f"Root-Is-Purelib: {str(pure).lower()}\n" in text
    assert (IN_WHEEL in names(wheel)) != pure
    return pure


def assert_holds_the_package(wheel):
    """Every source file of both packages, data and metadata; of the kernels' sources those for NVRTC; no tests."""
    sources = ROOT / "src"
    expected = {
        path.relative_to(sources).as_posix()
        for package in ("hf_internimage", "hf_internimage_cli")
        for path in (sources / package).rglob("*")
        if path.is_file() and path.suffix in (".html", ".json", ".md", ".mjs", ".py", ".txt", ".typed", ".yaml")
    }
    assert {"hf_internimage/py.typed", "hf_internimage_cli/recipes/classification/finetune.yaml"} <= expected
    expected |= {f"hf_internimage/ops/dcnv3_cuda/{name}" for name in ("nvrtc.cu", "dcnv3.cuh", "types.cuh")}
    found = {name for name in names(wheel) if not re.match(r"hf_internimage-[^/]*\.dist-info/", name)}
    assert found - {IN_WHEEL} == expected


def run_installed(folder, code):
    """Output of `code` with the package in `folder`, whatever else is installed or on PYTHONPATH here."""
    printed = run_python(
        f"import hf_internimage; print(hf_internimage.__file__)\n{code}", fork=False, PYTHONPATH=str(folder)
    )
    imported, _, rest = printed.partition("\n")
    assert Path(imported) == folder / "hf_internimage" / "__init__.py"
    return rest


OPERATOR = """
import torch
from hf_internimage import ops

torch.manual_seed(0)
value, offset, mask = torch.rand(2, 5, 7, 32), torch.randn(2, 5, 7, 36), torch.randn(2, 5, 7, 18)
run = lambda backend: ops.dcnv3(value, offset, mask, groups=2, softmax=True, backend=backend)
"""


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    python("-m", "hatchling", "build", "--target", "sdist", "--directory", folder)
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture
def source(sdist, tmp_path):
    """The unpacked sdist, to do with as one likes."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    return folder


@pytest.fixture
def quick(source):
    """The unpacked sdist with kernels that compile in no time, and do nothing."""
    kernels = '#include "kernels.h"\nnamespace HFI_ISA {\nextern const Kernels kernels = {};\n}\n'
    (source / "kernels" / "dcnv3" / "dcnv3_cpu" / "kernels.cpp").write_text(kernels)
    return source


@pytest.fixture
def broken(source):
    """The unpacked sdist with kernels that do not compile."""
    (source / "kernels" / "dcnv3" / "dcnv3_cpu" / "kernels.cpp").write_text("#error broken on purpose\n")
    return source


def test_sdist(sdist):
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    folders = ("src", "compat", "kernels", "scripts", "tests")
    files = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    built = re.compile(r"__pycache__|_dcnv3_cpu\.|\.pyc$")
    expected = {path.relative_to(ROOT).as_posix() for path in files if not built.search(path.as_posix())}
    assert expected <= found
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile"} <= found
    assert not any(built.search(name) for name in found)


@needs_compiler
@pytest.mark.slow
def test_wheel_with_the_library(source, tmp_path):
    """From the sdist, by pip; installed, the CPU backend runs and agrees with PyTorch's."""
    script = source / "kernels" / "dcnv3" / "build.py"
    text = script.read_text()
    assert "-O3" in text
    script.write_text(text.replace("-O3", "-O0"))  # seconds of compilation, not a minute; the rest is what users get
    wheel, _ = pip_wheel(source, tmp_path / "wheel", **{SWITCH: "1"})
    assert not is_pure(wheel)
    assert_holds_the_package(wheel)
    assert not (source / "src" / IN_WHEEL).exists()
    install(wheel, tmp_path / "site")
    library = tmp_path / "site" / IN_WHEEL
    check = f"""
import ctypes
torch.testing.assert_close(run("cpu"), run("torch"))
assert torch.equal(run(None), run("cpu"))
library = ctypes.CDLL({str(library)!r})
library.hfi_source_hash.restype = ctypes.c_char_p
print(library.hfi_source_hash().decode())
print(ops.explain())
"""
    built_from, explained = run_installed(tmp_path / "site", OPERATOR + check).split("\n", 1)
    assert built_from == dcnv3.source_hash()
    assert "dcnv3 on cpu, float32: cpu" in explained


@pytest.mark.slow
def test_cuda_sources_of_an_installed_wheel(source, tmp_path):
    """They are the ones of these sources, found in the installation, and NVRTC compiles them there."""
    wheel, _ = pip_wheel(source, tmp_path / "wheel", **{SWITCH: "0"})
    install(wheel, tmp_path / "site")
    folder = ROOT / "kernels" / "dcnv3" / "dcnv3_cuda"
    check = f"""
from pathlib import Path
import torch
from hf_internimage.models.dcnv3_reference import DCNv3Geometry
from hf_internimage.ops import nvrtc
from hf_internimage.ops.backends import dcnv3_cuda

sources = dcnv3_cuda.sources()
for name, text in sources.items():
    assert text == (Path({str(folder)!r}) / name).read_text(encoding="utf-8"), name
    assert (Path(dcnv3_cuda.__file__).parents[1] / "dcnv3_cuda" / name).exists()
geometry = DCNv3Geometry(4, (3, 3), (1, 1), (1, 1), (1, 1), 1.0, False)
kind = dcnv3_cuda.Kind.of("forward", torch.bfloat16, torch.bfloat16, torch.float32, 16, geometry)
print(nvrtc.why_not())
if nvrtc.why_not() is None:
    source = sources.pop("nvrtc.cu")
    print(nvrtc.compile(source, sources, (*kind.options(), "--gpu-architecture=compute_90"))[:2000].decode())
"""
    reason, _, code = run_installed(tmp_path / "site", check).partition("\n")
    if reason != "None":
        pytest.skip(f"the cuda backend {reason}")
    assert ".target sm_90" in code
    assert "dcnv3_forward" in code


@pytest.fixture
def library_here():
    """The optimised library that this environment uses."""
    if not native.PATH.exists():
        pytest.skip("no compiled library here")
    return native.PATH


def test_library_here_is_of_these_sources(library_here):
    built_from = native.library().hfi_source_hash().decode()
    assert built_from == dcnv3.source_hash(), "compile again: python kernels/dcnv3/build.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about Linux libraries")
@pytest.mark.skipif(not shutil.which("objdump"), reason="no objdump here")
def test_library_here_needs_only_old_libc(library_here):
    """What the tag manylinux_2_17 promises; `make wheel` has auditwheel check that and more."""
    text = subprocess.run(["objdump", "-p", library_here], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED\s+(\S+)", text))
    if any("asan" in name for name in needed):
        pytest.skip("a library with sanitizers")
    assert all(re.match(r"libc\.|ld-linux", name) for name in needed), needed
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", text)
    assert all((int(major), int(minor)) <= (2, 17) for major, minor in versions), versions


@pytest.mark.slow
def test_wheel_without_a_compiler(tmp_path):
    """From the checkout, by pip: a wheel for every platform, and the operator runs in PyTorch."""
    (tmp_path / "empty").mkdir()
    wheel, said = pip_wheel(ROOT, tmp_path / "wheel", PATH=str(tmp_path / "empty"), CXX="")
    assert is_pure(wheel)
    assert_holds_the_package(wheel)
    assert "built without its CPU library" in said
    assert "no C++ compiler was found" in said
    install(wheel, tmp_path / "site")
    check = f"""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert torch.equal(run(None), run({CPU_FALLBACK!r}))
    run(None)
print(*[warning.message for warning in caught], sep="\\n")
try:
    run("cpu")
except ops.BackendError as error:
    print(error)
print(ops.explain())
"""
    warned, refused, *explained = run_installed(tmp_path / "site", OPERATOR + check).splitlines()
    assert "no compiled library" in warned
    assert "no compiled library" in refused
    assert explained[0] == f"dcnv3 on cpu, float32: {CPU_FALLBACK}"


@needs_compiler
def test_editable_install(quick, tmp_path):
    """The library lies beside the sources, and never one of other sources."""
    library = quick / "src" / IN_WHEEL
    wheel, _ = hatch_wheel(quick, tmp_path / "wheel", editable=True)
    assert library.stat().st_size > 0
    assert IN_WHEEL not in names(wheel)
    assert not list(library.parent.glob(f"{library.name}?*")), "left over from writing it"
    wheel, _ = hatch_wheel(quick, tmp_path / "wheel", **{SWITCH: "0"})
    assert is_pure(wheel), "the library beside the sources is no part of a wheel"
    kernels = quick / "kernels" / "dcnv3" / "dcnv3_cpu" / "kernels.cpp"
    kernels.write_text("#error broken on purpose\n")
    hatch_wheel(quick, tmp_path / "wheel", editable=True)
    assert not library.exists()


@needs_compiler
def test_failed_compilation(broken, tmp_path):
    wheel, said = hatch_wheel(broken, tmp_path / "wheel")
    assert is_pure(wheel)
    assert "failed to compile kernels.cpp" in said
    assert "broken on purpose" in said


@needs_compiler
def test_release_builds_fail_without_the_library(broken, tmp_path):
    code = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    assert "broken on purpose" in python("-c", code, tmp_path, cwd=broken, fails=True, **{SWITCH: "1"})
    assert not list(tmp_path.glob("*.whl"))


def test_switch(broken, tmp_path):
    wheel, said = hatch_wheel(broken, tmp_path / "wheel", **{SWITCH: "0"})
    assert is_pure(wheel)
    assert "CPU library" not in said
    code = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    assert f"{SWITCH} must be 0 or 1" in python("-c", code, tmp_path, cwd=broken, fails=True, **{SWITCH: "yes"})


@needs_shell
def test_library_for_another_machine(source, tmp_path):
    """Such as a cross-compiler makes: it would be of no use in a wheel with this platform's tag."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\nif [ "$1" = -dumpmachine ]; then echo other; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done\necho nonsense > "$2"\n'
    )
    compiler.chmod(0o755)
    wheel, said = hatch_wheel(source, tmp_path / "wheel", CXX=str(compiler))
    assert is_pure(wheel)
    assert "does not load in this Python" in said


def test_compiler_search(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(dcnv3.BuildError, match="no-such-compiler, was not found"):
        dcnv3.find_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(dcnv3.BuildError, match="no C\\+\\+ compiler was found"):
        dcnv3.build(tmp_path / "library")
    assert not (tmp_path / "library").exists()


def test_names_agree():
    assert native.PATH.name == dcnv3.NAME
    assert dcnv3.OUTPUT == ROOT / "src" / IN_WHEEL


# ---- The command of an installed wheel ----


@pytest.fixture(scope="module")
def command(sdist, tmp_path_factory):
    """A function that runs the command `hf-internimage` of a wheel, in an environment that has no checkout.

    The environment sees the packages of this one, but not what is installed in editable mode.
    """
    folder = tmp_path_factory.mktemp("command")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    wheel, _ = hatch_wheel(source, folder / "wheel", **{SWITCH: "0"})
    shutil.rmtree(folder / "unpacked")
    venv.create(folder / "venv")
    programs = folder / "venv" / ("bin" if os.name == "posix" else "Scripts")
    interpreter = programs / "python"
    options = "--no-deps --no-index --no-compile --disable-pip-version-check --quiet".split()
    python("-m", "pip", "--python", interpreter, "install", *options, wheel)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (site,) = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    packages = [path for path in sys.path if path.endswith("-packages")]
    Path(site, "packages_of_the_tests.pth").write_text("\n".join(packages))
    (folder / "work").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*arguments, status=0, variables=None):
        line = [programs / "hf-internimage", *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 300, "check": False}
        done = subprocess.run(line, cwd=folder / "work", env=environment | (variables or {}), **options)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.folder, run.site = folder / "work", Path(site)
    return run


@pytest.mark.slow
def test_the_command_of_a_wheel_runs_the_quickstart(command, tmp_path):
    """Train by a recipe, predict a folder, evaluate, and push to a Hub; nothing comes from the checkout."""
    generator = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (command.folder / "photos" / name).mkdir(parents=True)
        for index in range(8):
            pixels = generator.integers(0, 50, (40, 60, 3)) + np.array(colour)
            Image.fromarray(pixels.astype("uint8")).save(command.folder / "photos" / name / f"{index}.jpg")
    options = ["--train_dir", "photos", "--output_dir", "out", "--use_cpu", "true", "--max_steps", 2]
    smaller = ["--config_overrides", '{"channels": 16, "depths": [1, 1], "groups": [1, 2]}', "--image_size", 32]
    command("train", "classification", "--recipe", "scratch", *options, *smaller, "--dataloader_num_workers", 0)
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "training.png"} <= set(
        os.listdir(command.folder / "out")
    )
    command("evaluate", "out", "--validation_dir", "photos", "--device", "cpu", "--output_dir", "scores")
    result = json.loads((command.folder / "scores" / "eval_evaluation.json").read_text())
    assert result["samples"] == 16
    said = command("predict", "out", "photos", "--output", "predictions", "--device", "cpu")
    assert "16 images in " in said
    assert "written to predictions: " in said
    predictions = command.folder / "predictions"
    assert len((predictions / "predictions.csv").read_text().splitlines()) >= 17
    with Image.open(predictions / "contact_sheet.jpg") as sheet:
        assert min(sheet.size) > 100
    with LoopbackHub(tmp_path / "hub") as hub:
        card = ["--result", Path("scores", "eval_evaluation.json")]
        said = command("push", "out", "tester/photos", *card, variables=hub.environment(tmp_path / "home"))
        assert said.startswith(f"pushed: {hub.url}/tester/photos/")
        files = hub.files("tester/photos")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_internimage.py"} <= set(files)
    assert files["model.safetensors"] == (command.folder / "out" / "model.safetensors").read_bytes()
    assert f"{100 * result['metrics']['top1']:.1f}" in files["README.md"].decode()


@pytest.mark.slow
def test_the_command_of_a_wheel_is_not_the_checkouts(command):
    code = "import hf_internimage, hf_internimage_cli; print(hf_internimage.__file__, hf_internimage_cli.__file__)"
    interpreter = next(command.site.parents[2].glob("*/python"))
    printed = subprocess.run([interpreter, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert [Path(path).parent.parent for path in printed.split()] == [command.site] * 2
    assert command("env").startswith("hf_internimage ")
    assert "error: argument --size: invalid choice: 'q'" in command("train", "detection", "--size", "q", status=2)


def test_all_needs_no_tools_of_developers():
    """`all` is what users may need; linters and test runners are in `dev` and `test`."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def packages(extra):
        for line in extras[extra]:
            requirement = packaging.requirements.Requirement(line)
            if requirement.name == "hf-internimage":
                for inner in requirement.extras:
                    yield from packages(inner)
            else:
                yield requirement.name

    everything = set(packages("all"))
    assert {"accelerate", "datasets", "kernels"} <= everything
    assert not everything & {"hatchling", "hypothesis", "import-linter", "mypy", "pre-commit", "pytest", "ruff"}
    assert {"description", "readme", "license", "keywords", "classifiers", "urls", "scripts"} <= set(project)
