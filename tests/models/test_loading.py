# SPDX-License-Identifier: MIT
"""Official files as they are, saving, and every way transformers loads a model."""

import pytest
import torch
from safetensors.torch import load_file
from support.golden_data import (
    MANIFESTS,
    TINY,
    awaken,
    golden_model,
    manifest,
    model_case,
    model_input,
    tiny_config,
    write_official_folder,
)
from support.island import ISLAND
from support.loading import (
    ANOTHER_VERSION,
    CLASSES,
    WITHOUT_THE_PACKAGE,
    assert_loaded_fully,
    every_class,
    remote_logits,
    run_python,
)
from transformers import AutoModel, AutoModelForImageClassification, pipeline
from transformers.core_model_loading import revert_weight_conversion

from hf_internimage import InternImageConfig, InternImageForImageClassification, InternImageModel
from hf_internimage.models import auto
from hf_internimage.models.loading_report import mismatched_modules


@every_class
@pytest.mark.parametrize("name", TINY)
def test_official_folder_loads_fully(name, build, tmp_path, capsys):
    model, info = build.from_pretrained(write_official_folder(name, tmp_path), output_loading_info=True)
    assert_loaded_fully(info)
    official = load_file(tmp_path / "model.safetensors")
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, official[key if key.startswith("model.") else f"model.{key}"]), key
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest(name):
    """All 11 official checkpoints by name and shape, both ways, without their weights (meta device)."""
    official = manifest(name)
    config = InternImageConfig(**official["config"])
    empty = {key: torch.empty(shape, device="meta") for key, shape in official["keys"].items()}
    for build in CLASSES:
        with torch.device("meta"):
            model = build(InternImageConfig(**official["config"]))
        expected = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        loaded, info = build.from_pretrained(
            None, config=config, state_dict=dict(empty), output_loading_info=True, device_map="meta"
        )
        assert_loaded_fully(info)
        assert {key: list(tensor.shape) for key, tensor in loaded.state_dict().items()} == expected
        if build is InternImageForImageClassification:
            saved = revert_weight_conversion(model, model.state_dict())
            assert {key: list(tensor.shape) for key, tensor in saved.items()} == official["keys"]
            assert sum(p.numel() for p in model.parameters()) == official["num_parameters"]
        else:
            assert sum(p.numel() for p in model.parameters()) == official["num_parameters_backbone"]


@pytest.mark.parametrize("name", TINY)
def test_saving_is_bit_exact_and_keeps_the_official_layout(name, tmp_path):
    write_official_folder(name, tmp_path / "official")
    model = InternImageForImageClassification.from_pretrained(tmp_path / "official")
    model.save_pretrained(tmp_path / "first")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    official, saved = (load_file(tmp_path / part / "model.safetensors") for part in ("official", "first"))
    assert official.keys() == saved.keys()
    assert all(torch.equal(official[key], saved[key]) for key in official)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    for key, tensor in golden_model(name).state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def test_load_state_dict_takes_the_official_layout():
    """As Trainer, accelerate and plain PyTorch load files, without transformers' conversion."""
    model = awaken(InternImageForImageClassification(tiny_config()))
    official = revert_weight_conversion(model, model.state_dict())
    assert "model.head.weight" in official
    other = InternImageForImageClassification(tiny_config())
    other.load_state_dict(official, strict=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key
    torch.nn.ModuleDict({"part": other}).load_state_dict(
        {f"part.{key}": tensor for key, tensor in official.items()}, strict=True
    )


@every_class
def test_saving_and_loading_each_class(build, tmp_path):
    model = awaken(build(tiny_config(layer_scale=0.1, out_features=["stage2"]))).eval()
    model.save_pretrained(tmp_path)
    loaded, info = build.from_pretrained(tmp_path, output_loading_info=True)
    assert_loaded_fully(info)
    assert loaded.config.out_features == ["stage2"]
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixel_values)[0][0], model(pixel_values)[0][0])
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_base_and_classifier_load_each_other(tmp_path):
    classifier = awaken(InternImageForImageClassification(tiny_config()))
    classifier.save_pretrained(tmp_path / "classifier")
    base, info = AutoModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert type(base) is InternImageModel
    assert_loaded_fully(info)
    base.save_pretrained(tmp_path / "base")
    model, info = InternImageForImageClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"conv_head", "head"}
    for key, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, classifier.model.state_dict()[key]), key
    # what was missing has been initialised as from scratch
    assert (model.conv_head[1][0].running_var == 1).all()
    assert not model.head.bias.any()
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_missing_offsets_start_at_zero(tmp_path):
    model = awaken(InternImageForImageClassification(tiny_config(layer_scale=0.25, center_feature_scale=True)))
    model.save_pretrained(tmp_path)
    kept = {
        k: v for k, v in load_file(tmp_path / "model.safetensors").items() if ".dcn." not in k and "_scale" not in k
    }
    config = InternImageConfig.from_pretrained(tmp_path)
    loaded, info = InternImageForImageClassification.from_pretrained(
        None, config=config, state_dict=kept, output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert all(".dcn." in key or "layer_scale" in key for key in info["missing_keys"])
    block = loaded.model.levels[2].blocks[1]
    assert not block.dcn.offset.weight.any()
    assert not block.dcn.mask.bias.any()
    assert not block.dcn.center_feature_scale_proj_weight.any()
    assert (block.layer_scale1 == 0.25).all()
    assert block.dcn.input_proj.weight.abs().max() > 0.1  # Xavier, not 0.02
    assert torch.equal(block.mlp.fc1.weight, model.model.levels[2].blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize("name", ["tiny_t", "tiny_h"])
def test_other_number_of_labels(name, tmp_path):
    write_official_folder(name, tmp_path)
    model, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {entry[0] for entry in info["mismatched_keys"]} == {"head.weight", "head.bias"}
    assert not info["missing_keys"]
    assert model.head.out_features == model.config.num_labels == model.config.num_classes == 3
    labels = {0: "cat", 1: "dog"}
    named = AutoModelForImageClassification.from_pretrained(
        tmp_path, id2label=labels, label2id={"cat": 0, "dog": 1}, ignore_mismatched_sizes=True
    )
    assert named.head.out_features == 2
    assert named.config.id2label == labels


def test_sharded_offloaded_and_other_dtypes(tmp_path):
    model = awaken(InternImageForImageClassification(tiny_config())).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixel_values).logits
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    with torch.no_grad():
        sharded = InternImageForImageClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(sharded(pixel_values).logits, expected)
        mapped = InternImageForImageClassification.from_pretrained(
            tmp_path,
            device_map={"model.patch_embed": "cpu", "model.pos_drop": "cpu", "model.levels": "disk"}
            | {"conv_head": "cpu", "head": "cpu"},
            offload_folder=tmp_path / "offload",
        ).eval()
        assert mapped.model.levels[0].blocks[0].mlp.fc1.weight.device.type == "meta"
        torch.testing.assert_close(mapped(pixel_values).logits, expected)
        automatic = InternImageForImageClassification.from_pretrained(tmp_path, device_map="auto").eval()
        torch.testing.assert_close(automatic(pixel_values).logits, expected)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            loaded = InternImageForImageClassification.from_pretrained(tmp_path, dtype=dtype).eval()
            assert {p.dtype for p in loaded.parameters()} == {dtype}
            got = loaded(pixel_values.to(dtype)).logits
            torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", TINY)
def test_pipeline_on_an_official_folder(name, tmp_path, caplog):
    from PIL import Image

    classify = pipeline("image-classification", model=str(write_official_folder(name, tmp_path)))
    picture = Image.fromarray(torch.randint(0, 256, (300, 260, 3), dtype=torch.uint8).numpy())
    first = classify(picture, top_k=10)
    assert len(first) == model_case(name)[0]["config"]["num_classes"]
    assert sum(entry["score"] for entry in first) == pytest.approx(1, abs=1e-5)
    assert first[0]["label"].startswith("LABEL_")
    assert "not supported" not in caplog.text
    features = pipeline("image-feature-extraction", model=str(tmp_path), pool=True)
    assert len(features(picture)[0]) == model_case(name)[0]["config"]["channels"] * 8


def test_hub_id_from_an_imitated_cache(tmp_path):
    """`from_pretrained("OpenGVLab/...")`, with the repository in the Hub's cache layout and no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--OpenGVLab--internimage_t_1k_224"
    write_official_folder("tiny_t", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    printed = run_python(
        """
        import hf_internimage
        from PIL import Image
        from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

        name = "OpenGVLab/internimage_t_1k_224"
        model, info = AutoModelForImageClassification.from_pretrained(name, output_loading_info=True)
        print(type(model).__module__, not info["missing_keys"] and not info["unexpected_keys"])
        print(AutoImageProcessor.from_pretrained(name).size.shortest_edge)
        backbone, info = hf_internimage.InternImageBackbone.from_pretrained(name, output_loading_info=True)
        print(type(backbone).__name__, not info["missing_keys"] and not info["unexpected_keys"])
        print(len(pipeline("image-classification", model=name)(Image.new("RGB", (260, 230)), top_k=3)))
        """,
        HF_HUB_CACHE=str(tmp_path / "hub"),
    )
    assert printed.split() == [
        "hf_internimage.models.modeling_internimage",
        "True",
        "224",
        "InternImageBackbone",
        "True",
        "3",
    ]


@pytest.mark.parametrize("installed", [WITHOUT_THE_PACKAGE, ANOTHER_VERSION], ids=["absent", "another_version"])
def test_saved_folder_runs_without_the_package(installed, tmp_path):
    """The code that save_pretrained puts beside the weights is complete: with the package absent it still runs."""
    model = golden_model("tiny_h")
    model.save_pretrained(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").glob("*.py")}
    assert files == ISLAND
    got = remote_logits(installed, tmp_path / "saved", model_input("tiny_h"))
    case, expected = model_case("tiny_h")
    torch.testing.assert_close(got, expected["logits"], rtol=0, atol=case["float32_noise"]["logits"]["atol"])


@pytest.mark.parametrize(
    "content", ['{"model_type": "internimage", "auto_map": 5}', '{"auto_map": ["AutoConfig"]}', "[" * 100_000]
)
def test_a_configuration_that_transformers_stumbles_over_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"The config.json of {tmp_path} .*; is it damaged\?") as caught:
        auto.load_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_new_weights_beside_the_classifier_are_named(tmp_path, caplog):
    model = InternImageForImageClassification(tiny_config(num_labels=5))
    model.save_pretrained(tmp_path)
    load = InternImageForImageClassification.from_pretrained

    def own_messages():
        return [record.getMessage() for record in caplog.records if record.name.startswith("hf_internimage")]

    again, info = load(tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True)
    assert {key for key, *_ in info["mismatched_keys"]} == {"head.weight", "head.bias"}
    assert torch.equal(again.conv_head[0].weight, model.conv_head[0].weight)
    assert not own_messages()
    load(tmp_path, cls_scale=2.0, ignore_mismatched_sizes=True)
    (message,) = own_messages()
    assert "the checkpoint has other sizes" in message
    assert "Newly initialised are conv_head, head; " in message
    assert "\n" not in message


def test_modules_are_named_in_the_order_of_the_alphabet():
    """Without indices; releases of transformers give names, or names with both shapes."""
    names = ["b.1.layers.0.weight", "b.0.layers.2.bias", "a.weight"]
    for keys in (names, [(name, (1,), (2,)) for name in names]):
        assert mismatched_modules({"mismatched_keys": keys}) == ["a", "b.layers"]
