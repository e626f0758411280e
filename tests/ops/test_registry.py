# SPDX-License-Identifier: MIT
"""The choice of the backend for a call, the reasons against the others, and their texts."""

import ast
import os
import re
import shutil
import subprocess
import sys
import types
import warnings

import pytest
import torch
from support.golden_data import tiny_config
from support.loading import run_python
from support.native_library import operators_run
from support.operator_cases import CPU_FALLBACK, LOPSIDED, make_inputs

import hf_internimage
from hf_internimage import InternImageModel, env, ops
from hf_internimage.ops import BackendError, dcnv3, native
from hf_internimage.ops.registry import Backend, Call, Registry

module = sys.modules["hf_internimage.ops.dcnv3"]
needs_library = pytest.mark.skipif(native.why_not() is not None, reason=f"the cpu backend {native.why_not()}")
CALL = Call("cpu", "float32")


@pytest.fixture
def registry(monkeypatch):
    """Makes a registry of pretended backends, {name: reason against it or None}, the last of which runs everything.

    `.asked` notes the backends asked, in order; `devices` is as for Backend, by name.
    """
    monkeypatch.delenv("HF_INTERNIMAGE_BACKEND", raising=False)

    def make(reasons, devices=None):
        asked, order = [], []
        for name, reason in reasons.items():

            def why_not(call, name=name, reason=reason):
                asked.append(name)
                return reason

            pretended = types.ModuleType(f"pretended_{name}")
            pretended.why_not = why_not
            monkeypatch.setitem(sys.modules, pretended.__name__, pretended)
            order.append(Backend(name, pretended.__name__, (devices or {}).get(name)))
        made = Registry("operator", order)
        made.asked = asked
        return made

    return make


def test_the_first_that_can_is_chosen_and_those_behind_it_are_not_loaded(registry):
    made = registry({"fast": "is broken", "good": None, "slow": None})
    with pytest.warns(RuntimeWarning):
        assert made.choose(CALL, None).name == "good"
    assert made.asked == ["fast", "good"]
    assert registry({"fast": None, "slow": None}).choose(CALL, None).name == "fast"


def test_the_last_is_chosen_unasked(registry):
    made = registry({"fast": "is broken", "slow": None})
    with pytest.warns(RuntimeWarning, match="operator runs on its slower backend 'slow': 'fast' is broken"):
        assert made.choose(CALL, None).name == "slow"
    assert made.asked == ["fast"]


def test_a_choice_is_made_once_for_each_kind_of_call(registry):
    made = registry({"fast": None, "slow": None})
    for call in (CALL, CALL, Call("cpu", "float64"), CALL, Call("cpu", "float64")):
        made.choose(call, None)
    assert made.asked == ["fast", "fast"]


def test_the_backend_demanded_runs_or_fails(registry):
    made = registry({"fast": "is broken", "good": None, "slow": None})
    for name in ("good", "slow"):
        assert made.choose(CALL, name).name == name
    for _ in range(2):  # a failure is not forgotten
        with pytest.raises(BackendError, match=r"operator: backend 'fast' cannot run this call: is broken\."):
            made.choose(CALL, "fast")
    assert issubclass(BackendError, RuntimeError)


def test_devices_decide_before_a_backend_is_loaded():
    made = Registry("operator", [Backend("fast", "no.such.module", ("cuda", "xpu")), Backend("slow", "sys")])
    with pytest.raises(BackendError, match="needs tensors on cuda or xpu, got cpu"):
        made.choose(CALL, "fast")
    with pytest.raises(ModuleNotFoundError):
        made.choose(Call("cuda", "float32"), "fast")


def test_warns_once_for_each_reason(registry):
    made = registry({"fast": "is broken", "slow": None})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype in ("float32", "float64", "bfloat16", "float32"):
            made.choose(Call("cpu", dtype), None)
    assert [warning.category for warning in caught] == [RuntimeWarning]


def test_does_not_warn_about_backends_for_other_devices(registry):
    made = registry({"gpu": "has no driver", "fast": None, "slow": None}, {"gpu": ("cuda",)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.choose(CALL, None).name == "fast"
    assert made.asked == ["fast"]
    with pytest.warns(RuntimeWarning, match="'gpu' has no driver"):
        assert made.choose(Call("cuda", "float32"), None).name == "fast"


def test_explains_every_backend(registry):
    made = registry({"gpu": None, "fast": "is broken", "slow": None}, {"gpu": ("cuda",)})
    assert made.explain(CALL) == {"gpu": "needs tensors on cuda, got cpu", "fast": "is broken", "slow": None}
    assert list(made.explain(CALL)) == ["gpu", "fast", "slow"]


def test_requested_backend(registry, monkeypatch):
    """By the argument, else by the environment, else nothing; the argument wins."""
    made = registry({"fast": None, "slow": None})
    assert made.requested(None) is None
    assert made.requested("slow") == "slow"
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "slow")
    assert made.requested(None) == "slow"
    assert made.requested("fast") == "fast"
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "")
    assert made.requested(None) is None
    for name in ("medium", ""):
        with pytest.raises(ValueError, match=f"backend is '{name}', expected one of fast, slow, or none for the best"):
            made.requested(name)
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "medium")
    with pytest.raises(ValueError, match="HF_INTERNIMAGE_BACKEND is 'medium', expected one of fast, slow"):
        made.requested(None)
    assert made.requested("fast") == "fast"


# DCNv3's own


@pytest.fixture
def ran(monkeypatch):
    """Return how often PyTorch's own operators ran: "reference" each time."""
    names, reference = [], module.dcnv3_reference
    monkeypatch.setattr(module, "dcnv3_reference", lambda *a, **k: (names.append("reference"), reference(*a, **k))[1])
    return names


@needs_library
def test_argument_and_environment_demand_a_backend_of_dcnv3(ran, monkeypatch):
    inputs = make_inputs(LOPSIDED)
    monkeypatch.delenv("HF_INTERNIMAGE_BACKEND", raising=False)
    for variable, argument, expected in (
        (None, None, "dcnv3"),
        (None, "cpu", "dcnv3"),
        (None, "torch", "reference"),
        ("torch", None, "reference"),
        ("torch", "cpu", "dcnv3"),
        ("cpu", "torch", "reference"),
        ("cpu", None, "dcnv3"),
        ("", None, "dcnv3"),
    ):
        with monkeypatch.context() as patch:
            if variable is not None:
                patch.setenv("HF_INTERNIMAGE_BACKEND", variable)
            with operators_run() as runs:
                dcnv3(*inputs, **LOPSIDED, backend=argument)
        assert ran + runs == [expected], (variable, argument)
        ran.clear()
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "tpu")
    names = ", ".join(module.DCNV3.backends)
    expected = f"HF_INTERNIMAGE_BACKEND is 'tpu', expected one of {names}, or none for the best"
    with pytest.raises(ValueError, match=expected):
        dcnv3(*inputs, **LOPSIDED)


def test_backends_are_loaded_when_they_are_needed():
    printed = run_python(
        """
        import sys
        import torch
        from hf_internimage.ops import dcnv3, explain

        def loaded():
            print(sorted(name.rpartition(".")[2] for name in sys.modules if "dcnv3_" in name and ".backends." in name))

        value, offset, mask = torch.rand(1, 4, 4, 2), torch.rand(1, 4, 4, 18), torch.rand(1, 4, 4, 9)
        loaded()
        dcnv3(value, offset, mask, groups=1, backend="torch")
        dcnv3(value.to("meta"), offset.to("meta"), mask.to("meta"), groups=1)
        loaded()
        dcnv3(value, offset, mask, groups=1)
        loaded()
        explain()
        loaded()
        """
    )
    *before, after = printed.splitlines()
    assert before == ["[]", "[]", "['dcnv3_cpu']"]
    modules = {backend.module.rpartition(".")[2] for backend in module.DCNV3.backends.values()}
    assert modules <= set(ast.literal_eval(after))


def test_other_devices_and_dtypes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for device in ("mps", "meta"):
            assert module.DCNV3.choose(Call(device, "float32"), None).name == "torch"
            with pytest.raises(BackendError, match=f"'cpu' cannot run this call: needs tensors on cpu, got {device}"):
                module.DCNV3.choose(Call(device, "float32"), "cpu")
    assert module.DCNV3.explain(Call("cpu", "float8_e5m2")) == {
        "hub": "needs tensors on cuda, got cpu",
        "cuda": "needs tensors on cuda, got cpu",
        "triton": "needs tensors on cuda or xpu, got cpu",
        "cpu": "computes float32, float64, bfloat16, float16, not float8_e5m2",
        "torch": None,
    }


@pytest.mark.parametrize(("device", "backends"), [("cuda", ["cuda", "triton"]), ("xpu", ["triton"])])
def test_gpus_without_their_backends_warn_of_each(device, backends, monkeypatch):
    if getattr(torch, device).is_available():
        pytest.skip(f"there is such a GPU here: {device}")
    monkeypatch.setattr(module, "DCNV3", Registry("dcnv3", tuple(module.DCNV3.backends.values())))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert module.DCNV3.choose(Call(device, "float32"), None).name == "torch"
    assert [str(warning.message).partition(":")[2].split()[0] for warning in caught] == [
        f"'{name}'" for name in backends
    ]
    for name in backends:
        with pytest.raises(BackendError, match=f"backend '{name}' cannot run this call: "):
            module.DCNV3.choose(Call(device, "float32"), name)


def test_a_backend_demanded_for_another_device_fails():
    inputs = [tensor.to("meta") for tensor in make_inputs(LOPSIDED)]
    with pytest.raises(BackendError, match="needs tensors on cpu, got meta"):
        dcnv3(*inputs, **LOPSIDED, backend="cpu")
    assert dcnv3(*inputs, **LOPSIDED, backend="torch").shape == (2, 3, 5, 6)


@pytest.fixture
def with_library(monkeypatch):
    """Puts another file in the library's place; what is known of the old one is forgotten, before and after."""

    def put(path):
        native._load.cache_clear()
        monkeypatch.setattr(native, "PATH", path)
        monkeypatch.setattr(module, "DCNV3", Registry("dcnv3", tuple(module.DCNV3.backends.values())))

    monkeypatch.delenv("HF_INTERNIMAGE_BACKEND", raising=False)
    yield put
    monkeypatch.undo()
    native._load.cache_clear()


def test_without_the_library_the_slower_backend_runs_with_one_warning(with_library, ran, tmp_path, monkeypatch):
    inputs = make_inputs(LOPSIDED)
    expected = dcnv3(*inputs, **LOPSIDED, backend=CPU_FALLBACK)
    model = InternImageModel(tiny_config(depths=[1], groups=[1])).eval()
    ran.clear()
    with_library(tmp_path / "missing.so")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(dcnv3(*inputs, **LOPSIDED), expected)
            dcnv3(*(tensor.float() for tensor in inputs), **LOPSIDED)
            model(torch.randn(1, 3, 32, 32))
            geometry = module.check_dcnv3(*inputs, **LOPSIDED)
            assert torch.equal(torch.ops.hf_internimage.dcnv3(*inputs, *geometry.numbers(), False), expected)
    assert set(ran) == ({"reference"} if CPU_FALLBACK == "torch" else set())
    (text,) = (str(warning.message) for warning in caught if warning.category is RuntimeWarning)
    assert f"dcnv3 runs on its slower backend '{CPU_FALLBACK}': 'cpu' has no compiled library" in text
    assert "python kernels/dcnv3/build.py" in text
    with pytest.raises(BackendError, match="backend 'cpu' cannot run this call: has no compiled library"):
        dcnv3(*inputs, **LOPSIDED, backend="cpu")
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "cpu")
    with pytest.raises(BackendError, match="has no compiled library"):
        model(torch.randn(1, 3, 32, 32))
    assert f"dcnv3 on cpu, float32: {CPU_FALLBACK}\n    not cpu: has no compiled library" in ops.explain()
    assert "compiled CPU library: has no compiled library" in env.describe()
    with pytest.raises(RuntimeError, match="The cpu backend has no compiled library"):
        native.library()


def test_a_file_that_is_no_library_is_refused(with_library, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    with_library(tmp_path / "text.so")
    with pytest.raises(BackendError, match=r"cannot run this call: cannot load its library: .*text\.so"):
        dcnv3(*make_inputs(LOPSIDED), **LOPSIDED, backend="cpu")


@pytest.mark.parametrize(
    ("function", "message"),
    [("hfi_interface", r"another version \(interface 999, expected \d+\)"), ("something_else", "another|cannot")],
)
def test_a_library_of_another_version_is_refused(function, message, with_library, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler here")
    (tmp_path / "other.c").write_text(f"long long {function}(void) {{ return 999; }}")
    subprocess.run([compiler, "-shared", "-fPIC", "other.c", "-o", "other.so"], cwd=tmp_path, check=True)
    with_library(tmp_path / "other.so")
    assert native.why_not() is not None
    with pytest.raises(BackendError, match=message):
        dcnv3(*make_inputs(LOPSIDED), **LOPSIDED, backend="cpu")
    with pytest.warns(RuntimeWarning, match="slower backend"):
        dcnv3(*make_inputs(LOPSIDED), **LOPSIDED)


def test_explains_in_words():
    text = ops.explain()
    assert text.splitlines()[0] == f"dcnv3 on cpu, float32: {CPU_FALLBACK if native.why_not() else 'cpu'}"
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert f"dcnv3 on cpu, {dtype}: " in text
    for device in ("cuda", "mps", "xpu"):
        assert (f"dcnv3 on {device}, float32: " in text) == getattr(torch, device).is_available()


LACKS = (
    "lacks the instruction set HF_INTERNIMAGE_CPU_ISA='{}', or this processor does; "
    "set it to baseline, avx2 or avx512, or not at all."
)


@needs_library
@pytest.mark.parametrize("name", ["sse9", "avx512\n", "\udcff\udc80", "é"])
def test_a_demanded_instruction_set_that_is_missing_is_an_error(name, with_library, monkeypatch):
    """As a demanded backend is; no other backend runs instead."""
    monkeypatch.setenv("HF_INTERNIMAGE_CPU_ISA", name)
    with_library(native.PATH)
    model = InternImageModel(tiny_config(depths=[1], groups=[1])).eval()
    for call in (
        lambda: dcnv3(*make_inputs(LOPSIDED), **LOPSIDED),
        lambda: dcnv3(*make_inputs(LOPSIDED), **LOPSIDED, backend="cpu"),
        lambda: model(torch.randn(1, 3, 32, 32)),
    ):
        with pytest.raises(BackendError, match=re.escape(LACKS.format(repr(name)[1:-1]))):
            call()
    assert torch.isfinite(dcnv3(*make_inputs(LOPSIDED), **LOPSIDED, backend="torch")).all()
    assert repr(name)[1:-1] in ops.explain()
    env.describe().encode()


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="other systems check the size of a library themselves")
@pytest.mark.parametrize("share", [0.0005, 0.1, 0.5, 0.9])
def test_a_library_that_was_cut_off_is_refused(share, with_library, tmp_path):
    """Linux would map it and end the process at the first access behind its end."""
    data = native.PATH.read_bytes()
    path = tmp_path / "cut.so"
    path.write_bytes(data)
    assert native._missing_bytes(path) == 0
    path.write_bytes(data[: int(len(data) * share)])
    with_library(path)
    with pytest.raises(BackendError, match=r"has a library that was cut off \(.*cut\.so lacks [\d,]+ bytes\): install"):
        dcnv3(*make_inputs(LOPSIDED), **LOPSIDED, backend="cpu")


def test_odd_bytes_in_environment_variables():
    """Escaped in the output of the command, and in errors of one line."""
    odd = os.fsdecode(b"\xff\x01\n/caf\xc3\xa9")
    shown = "\\udcff\\x01\\n/café"
    names = (
        "HF_INTERNIMAGE_BACKEND",
        "HF_INTERNIMAGE_CPU_ISA",
        "HF_INTERNIMAGE_CACHE",
        "HF_INTERNIMAGE_USE_HUB_KERNEL",
    )
    output = env_output(**dict.fromkeys(names, odd), PYTHONIOENCODING="utf-8")
    assert f"HF_INTERNIMAGE_BACKEND: {shown}\n" in output
    assert native.why_not() or f"HF_INTERNIMAGE_CPU_ISA='{shown}'" in output
    for name in names[:2]:
        code = """
            import torch
            from hf_internimage.ops import dcnv3
            from hf_internimage.ops.registry import BackendError
            try:
                dcnv3(torch.zeros(1, 3, 3, 2), torch.zeros(1, 3, 3, 18), torch.zeros(1, 3, 3, 9), groups=1)
            except (BackendError, ValueError) as error:
                print(str(error))
            """
        lines = run_python(code, **{"HF_INTERNIMAGE_BACKEND": "", "HF_INTERNIMAGE_CPU_ISA": "", name: odd}).splitlines()
        assert [name in line for line in lines] == ([True] if name == names[0] or not native.why_not() else [])


def env_output(**environment):
    return run_python(
        "import runpy; runpy.run_module('hf_internimage.env', run_name='__main__')",
        **{"HF_INTERNIMAGE_BACKEND": "", "HF_INTERNIMAGE_CPU_ISA": "", **environment},
    )


def test_env_command():
    lines = env_output(HF_INTERNIMAGE_CPU_ISA="baseline").splitlines()
    assert lines[0].startswith(f"hf_internimage {hf_internimage.__version__}, torch {torch.__version__}, transformers ")
    assert lines[1] == "HF_INTERNIMAGE_BACKEND: not set"
    if not native.why_not():
        assert lines[2].startswith("compiled CPU library: baseline, ")
    assert lines[3].startswith("GPUs: ")
    assert lines[4].startswith("CUDA kernels: ")
    assert lines[5:] == ops.explain().splitlines()


@needs_library
def test_env_command_tells_what_is_wrong():
    text = env_output(HF_INTERNIMAGE_BACKEND="tpu", HF_INTERNIMAGE_CPU_ISA="sse9")
    assert "HF_INTERNIMAGE_BACKEND: tpu\n" in text
    reason = f"The cpu backend {LACKS.format('sse9')}"
    assert f"compiled CPU library: {reason}\n" in text
    assert f"dcnv3 on cpu, float32: {CPU_FALLBACK}\n    not cpu: {reason}\n" in text


def test_free_sizes_follow_the_operators_own_rule(monkeypatch):
    """The decomposition for ONNX does not stand in for it: that would trace some sixty operators a call."""

    def fail(*arguments):
        raise AssertionError("the decomposition ran")

    monkeypatch.setitem(torch._decomp.decomposition_table, torch.ops.hf_internimage.dcnv3.default, fail)

    class Sampling(torch.nn.Module):
        def forward(self, value, offset, mask):
            return dcnv3(value, offset, mask, **LOPSIDED)

    free = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Sampling(), tuple(make_inputs(LOPSIDED)), dynamic_shapes=(free, free, free))
    assert any(node.target is torch.ops.hf_internimage.dcnv3.default for node in program.graph.nodes)
