# SPDX-License-Identifier: MIT
"""FlashInternImage against the original's numbers, and what transformers and the heads expect of it."""

import doctest
import inspect
import re

import pytest
import torch
from safetensors import safe_open
from support import golden_flash
from support.golden_data import awaken
from support.island import ISLAND
from support.loading import WITHOUT_THE_PACKAGE, assert_loaded_fully, remote_logits
from support.native_library import operators_run
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

import hf_internimage
from hf_internimage import (
    FlashInternImageBackbone,
    FlashInternImageConfig,
    FlashInternImageForImageClassification,
    FlashInternImageModel,
    InternImageConfig,
    InternImageModel,
    complexity,
    heads,
    visualize,
)
from hf_internimage.models.configuration_flash_internimage import FLASH_SIZES
from hf_internimage.models.layers_flash_internimage import FlashInternImageDeformableConvolution
from hf_internimage.ops import fused_cpu, native

SMALL = {"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8], "num_labels": 5}
OPTIONS = {
    "t": {},
    "b": {"post_norm": True, "layer_scale": 0.5, "dw_kernel_size": 3, "offset_scale": 0.5},
    "l": {"layer_scale": 0.5, "dw_kernel_size": 5, "dcn_output_bias": True, "mlp_fc2_bias": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def tiny_config(**fields):
    return FlashInternImageConfig(**{**SMALL, **fields})


def tiny_model(**fields):
    torch.manual_seed(0)
    return awaken(FlashInternImageForImageClassification(tiny_config(**fields))).eval()


def images(batch=2, height=64, width=64):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("which", ["plain", "nonsquare", "odd"])
@pytest.mark.parametrize("name", golden_flash.TINY)
def test_matches_the_original_in_float32(name, which):
    case, expected = golden_flash.load(f"models/{name}")
    prefix = "" if which == "plain" else f"{which}/"
    model, pixel_values = golden_flash.model(name), golden_flash.model_input(name, which)
    labels = torch.tensor(case["labels"]) if which == "plain" else None
    with torch.no_grad():
        outputs = model(pixel_values, labels=labels, output_hidden_states=True)
        features = model.get_image_features(pixel_values).pooler_output
    found = {f"hidden_states_{index}": states for index, states in enumerate(outputs.hidden_states[1:])}
    found |= {"pooler_output": features, "logits": outputs.logits} | (
        {"loss": outputs.loss} if labels is not None else {}
    )
    assert {name.removeprefix(prefix) for name in case["float32_noise"] if name.startswith(prefix)} >= set(found)
    for what, got in found.items():
        atol = case["float32_noise"][f"{prefix}{what}"]["atol"]
        want = expected[f"{prefix}{what}"].reshape(got.shape)
        torch.testing.assert_close(got, want, rtol=0, atol=atol, msg=lambda text, w=what: f"{w}: {text}")


@pytest.mark.parametrize("name", golden_flash.TINY)
def test_matches_the_original_in_float64(name):
    case, expected = golden_flash.load(f"models/{name}")
    model = golden_flash.model(name, torch.float64)
    for which in case["inputs"]:
        prefix = "" if which == "plain" else f"{which}/"
        pixel_values = golden_flash.model_input(name, which, torch.float64)
        with torch.no_grad():
            found = {
                "logits": model(pixel_values).logits,
                "pooler_output": model.get_image_features(pixel_values).pooler_output,
            }
        for what, got in found.items():
            want = expected[f"{prefix}float64/{what}"]
            torch.testing.assert_close(got, want, rtol=0, atol=case["atol_float64"])


@pytest.mark.parametrize(("dtype", "suffix"), [(torch.float32, ""), (torch.float64, "_float64")], ids=str)
@pytest.mark.parametrize("name", golden_flash.TINY)
def test_gradient_norms_of_every_parameter(name, dtype, suffix):
    case, _ = golden_flash.load(f"models/{name}")
    model = golden_flash.model(name, dtype)
    loss = model(golden_flash.model_input(name, dtype=dtype), labels=torch.tensor(case["labels"])).loss
    loss.backward()
    assert loss.item() == pytest.approx(case[f"loss{suffix}"], abs=1e-9 if suffix else case["atol_float32"])
    norms = case[f"grad_norms{suffix}"]
    found = {
        key.removeprefix("model.").replace("layer_scale", "gamma"): parameter.grad.norm().item()
        for key, parameter in model.named_parameters()
    }
    assert found.keys() == norms.keys()
    noise = (1e-9 if suffix else 1e-6) * max(norms.values())  # a norm that is rounding noise alone
    assert found == pytest.approx(norms, rel=1e-9 if suffix else case["rtol_grad_norm"], abs=noise)


def test_full_size_t_matches_the_original():
    case, expected = golden_flash.load("models/full_t")
    for dtype, atol, prefix in ((torch.float32, "atol_float32", ""), (torch.float64, "atol_float64", "float64/")):
        model = golden_flash.model("full_t", dtype)
        with torch.no_grad():
            outputs = model(golden_flash.model_input("full_t", dtype=dtype), output_hidden_states=True)
        torch.testing.assert_close(outputs.logits, expected[f"{prefix}logits"], rtol=0, atol=case[atol])
        if dtype == torch.float32:
            assert outputs.logits[0].topk(5).indices.tolist() == case["top5"]
        for index, states in enumerate(outputs.hidden_states[1:]):
            assert list(states.shape) == case["hidden_shapes"][index]
            spread, mean = torch.std_mean(states.double(), (2, 3), correction=0)
            for what, got in (("mean", mean), ("std", spread)):
                want = expected[f"hidden_{what}_{index}"].double().reshape(got.shape)
                torch.testing.assert_close(got, want, rtol=0, atol=case[atol])


# Of the original's options, those that its models use, and `remove_center`; tests of `nn.DCNv4` have all cases.
USED = {"channels", "group", "dw_kernel_size", "output_bias", "offset_scale", "remove_center"}
USED_MODULES = [name for name, case in golden_flash.modules().items() if set(case["arguments"]) <= USED]


def test_modules_that_are_compared():
    assert USED_MODULES == ["plain", "dw3_nobias_scale0.5", "dw5_scale2", "remove_center"]


@pytest.mark.parametrize("name", USED_MODULES)
def test_module_matches_the_original(name):
    case = golden_flash.modules()[name]
    fields = dict(case["arguments"])
    channels, groups = fields.pop("channels"), fields.pop("group")
    fields["dcn_output_bias"] = fields.pop("output_bias", True)
    module = FlashInternImageDeformableConvolution(FlashInternImageConfig(**fields), channels, groups)
    golden_flash.check_module(name, module, lambda states: module(states.unflatten(1, case["size"])).flatten(1, 2))


@every_option
def test_rows_of_padding_do_not_matter(options):
    """The layer before the operator computes a multiple of 8 features; those behind the last group are not read."""
    model = tiny_model(**options)
    before = model(images(), labels=torch.tensor([1, 4]))
    padding = []
    for module in model.modules():
        if isinstance(module, FlashInternImageDeformableConvolution):
            used = 27 * module.groups
            assert module.offset_mask.out_features == -(-used // 8) * 8
            padding += [module.offset_mask.weight[used:], module.offset_mask.bias[used:]]
    assert sum(map(torch.numel, padding)) > 0
    with torch.no_grad():
        for rows in padding:
            rows.normal_()
    after = model(images(), labels=torch.tensor([1, 4]))
    assert torch.equal(before.logits, after.logits)
    after.loss.backward()
    for module in model.modules():
        if isinstance(module, FlashInternImageDeformableConvolution):
            gradients = module.offset_mask.weight.grad, module.offset_mask.bias.grad
            assert not any(gradient[27 * module.groups :].any() for gradient in gradients)
            assert all(gradient[: 27 * module.groups].any() for gradient in gradients)


@every_option
def test_new_models_sample_nothing_and_learn(options):
    """As in the original: offsets and weights start at zero, so the operator returns zero at first."""
    torch.manual_seed(0)
    model = FlashInternImageForImageClassification(tiny_config(**options))
    convolutions = [part for part in model.modules() if isinstance(part, FlashInternImageDeformableConvolution)]
    assert not any(parameter.any() for part in convolutions for parameter in part.offset_mask.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        loss = model(images(), labels=torch.tensor([1, 4])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(part.offset_mask.weight.any() for part in convolutions)


@every_option
def test_round_trip_and_auto_classes(options, tmp_path):
    model = tiny_model(**options)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(images(), output_hidden_states=True)
        for auto_class, kind in (
            (AutoModelForImageClassification, FlashInternImageForImageClassification),
            (AutoModel, FlashInternImageModel),
            (AutoBackbone, FlashInternImageBackbone),
        ):
            assert type(auto_class.from_config(model.config)) is kind
            loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
            assert_loaded_fully(info)
            outputs = loaded.eval()(images(), output_hidden_states=True)
            for found, wanted in zip(outputs.hidden_states, expected.hidden_states, strict=True):
                assert torch.equal(found, wanted)
            if kind is FlashInternImageForImageClassification:
                assert torch.equal(outputs.logits, expected.logits)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is FlashInternImageForImageClassification
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is FlashInternImageConfig
    for field in (*OPTIONS["b"], *OPTIONS["l"]):
        assert getattr(config, field) == getattr(model.config, field)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert all(name.startswith("model.") for name in file.keys())  # noqa: SIM118  # as in InternImage's files


def test_saved_folder_runs_without_the_package(tmp_path):
    """The code that is saved beside the weights is complete."""
    golden_flash.model("tiny_b").save_pretrained(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").glob("*.py")}
    names = (
        "configuration_flash_internimage",
        "dcnv4_layout",
        "layers_flash_internimage",
        "modeling_flash_internimage",
    )
    assert files == ISLAND | {f"{name}.py" for name in names}
    logits = remote_logits(WITHOUT_THE_PACKAGE, tmp_path / "saved", golden_flash.model_input("tiny_b"))
    case, expected = golden_flash.load("models/tiny_b")
    atol = case["float32_noise"]["logits"]["atol"]
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=atol)


@every_option
def test_fused_layers_run_on_the_processor(options, monkeypatch):
    """Also where the last linear layers have no bias."""
    if reason := native.why_not():
        pytest.skip(reason)
    monkeypatch.setattr(fused_cpu, "_LEAST_PRODUCTS", 0)
    model = tiny_model(**options)
    linears = [name for name, part in model.model.levels.named_modules() if isinstance(part, torch.nn.Linear)]
    with operators_run() as runs:
        loss = model(images(), labels=torch.tensor([1, 4])).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert runs.count("dcnv3") == runs.count("gelu_linear") == runs.count("gelu_linear_backward") == 5
    if fused_cpu._LINEAR is not None:
        assert runs.count("linear") >= len(linears) - 5  # the second layers of the MLPs are in gelu_linear
    monkeypatch.setenv("HF_INTERNIMAGE_BACKEND", "torch")
    with operators_run() as runs:
        loss = model(images(), labels=torch.tensor([1, 4])).loss
        expected = torch.autograd.grad(loss, list(model.parameters()))
    assert not runs
    noise = 1e-7 * max(gradient.abs().max() for gradient in expected).item()
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * wanted.abs().max().item() + noise)


@every_option
def test_sampling_is_counted(options):
    """Four corners, bilinear weights and the sum: as for DCNv3."""
    config = tiny_config(**options)
    sizes = [(32, 16), (16, 32), (8, 64), (8, 64), (4, 128)]  # side and channels of each block
    expected = complexity.DCNV3_MACS * 9 * sum(side**2 * channels for side, channels in sizes)
    assert complexity.count_macs(config, 128).dcnv3 == expected


def test_points_of_dcnv4_are_not_shown():
    with pytest.raises(ValueError, match="FlashInternImageLayer has no DCNv3, whose samples can be shown"):
        visualize.offset_statistics(tiny_model(), images())


@every_option
def test_heads_take_it_as_their_backbone(options, tmp_path):
    config = heads.head_config("upernet", tiny_config(**options), num_labels=7)
    FlashInternImageModel(tiny_config(**options)).save_pretrained(tmp_path)
    model = heads.from_backbone("upernet", tmp_path, num_labels=7, auxiliary_channels=16, hidden_size=16)
    assert type(model.backbone) is FlashInternImageBackbone
    assert config.backbone_config.model_type == "flash_internimage"
    with torch.no_grad():
        assert model(images(1, 64, 96)).logits.shape == (1, 7, 64, 96)


def test_heads_keep_other_architectures_apart():
    model = heads.from_backbone("upernet", FlashInternImageModel(tiny_config()), hidden_size=16, auxiliary_channels=16)
    for other, difference in (
        (FlashInternImageModel(tiny_config(dw_kernel_size=3)), r"dw_kernel_size \(3, in the model None\)"),
        (
            InternImageModel(InternImageConfig(**SMALL)),
            r"model_type \('internimage', in the model 'flash_internimage'\)",
        ),
    ):
        with pytest.raises(ValueError, match=difference):
            heads.load_backbone(model, other)


@pytest.mark.parametrize("size", FLASH_SIZES)
def test_released_sizes(size):
    labels = 21841 if size == "l" else 1000
    manifest = golden_flash.manifest(f"flash_intern_image_{size}_{'22k_384' if size == 'l' else '1k_224'}")
    config = FlashInternImageConfig.from_size(size, num_labels=labels)
    given = FlashInternImageConfig(**manifest["config"], num_labels=labels)
    assert {**config.to_dict(), "image_size": None} == {**given.to_dict(), "image_size": None}
    with torch.device("meta"):
        model = FlashInternImageForImageClassification(config)
    assert model.num_parameters() == manifest["num_parameters"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"core_op": "DCNv3"}, "core_op is 'DCNv3', expected one of DCNv4."),
        ({"dcn_output_bias": 1}, "dcn_output_bias is 1, expected True or False."),
        ({"mlp_fc2_bias": None}, "mlp_fc2_bias is None, expected True or False."),
        ({"dw_kernel_size": 4}, "dw_kernel_size is 4, expected an odd integer of at most 1001, or None"),
        ({"mlp_fc2_bais": True}, "has no field 'mlp_fc2_bais'; did you mean 'mlp_fc2_bias'"),
    ],
)
def test_values_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        FlashInternImageConfig(**fields)
    with pytest.raises(ValueError, match="size is 'xl', expected one of t, s, b, l"):
        FlashInternImageConfig.from_size("xl")


def test_an_internimage_takes_no_dcnv4():
    with pytest.raises(ValueError, match="core_op is 'DCNv4', expected one of DCNv3, DCNv3_pytorch"):
        InternImageConfig(core_op="DCNv4")


@pytest.mark.parametrize("name", ["Model", "Backbone", "ForImageClassification"])
def test_configurations_of_the_other_family_are_refused(name):
    """FlashInternImageConfig is an InternImageConfig, and would silently give an InternImage."""
    config, other = tiny_config(), InternImageConfig(**SMALL)
    with pytest.raises(ValueError, match=f"InternImage{name} takes configurations of model_type 'internimage'"):
        getattr(hf_internimage, f"InternImage{name}")(config)
    with pytest.raises(ValueError, match=f"FlashInternImage{name} takes .*'flash_internimage', and this one has 'int"):
        getattr(hf_internimage, f"FlashInternImage{name}")(other)


def test_documentation_of_the_fields():
    """The fields that are its own or have another meaning, the released values, and an example that runs."""
    text = inspect.getdoc(FlashInternImageConfig)
    documented = re.findall(r"^    (\w+) \(`", text.partition("Args:")[2], re.MULTILINE)
    own = {name for name in FlashInternImageConfig.__annotations__ if name[0] != "_"}
    assert set(documented) == {*own, "dw_kernel_size", "center_feature_scale"}
    head, _, *rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    sizes = [FlashInternImageConfig.from_size(size) for size in head[1:]]
    assert [size.lower() for size in head[1:]] == list(FLASH_SIZES)
    assert {field for field, *_ in rows} == {field for fields in FLASH_SIZES.values() for field in fields}
    for field, *values in rows:
        for config, value in zip(sizes, values, strict=True):
            actual = getattr(config, field)
            shown = " ".join(map(str, actual)) if isinstance(actual, (list, tuple)) else str(actual)
            assert shown == value, (field, value)
    tests = doctest.DocTestFinder(recurse=False).find(FlashInternImageConfig, "FlashInternImageConfig")
    runner = doctest.DocTestRunner()
    assert [runner.run(test).failed for test in tests] == [0]
    assert runner.tries == 3
