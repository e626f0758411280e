# SPDX-License-Identifier: MIT
"""What importing the package does, and the rules of the files that travel to the Hub.

Which layer may import which is in pyproject.toml, for import-linter.
"""

import ast
import re
import sys
from pathlib import Path

import pytest
from support.loading import run_python
from support.rcnn_tools import why_no_torchvision

import hf_internimage
from hf_internimage.models import auto

PACKAGE = Path(hf_internimage.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
SAVED_CLASSES = [
    name
    for entry in auto.MODELS.values()
    if entry.travels
    for name in (*entry.models.values(), *(entry.processors.values() if entry.saved_processor is None else ()))
]
EVERYWHERE = {"numpy", "torch", "transformers"} | set(sys.stdlib_module_names)
TRAVELLING = {path.name for path in auto.source_files(*SAVED_CLASSES, *auto.OTHER_PROCESSORS)}


def imports(path):
    """(module, level, names) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, [alias.name for alias in node.names]


@pytest.mark.parametrize("file", sorted(TRAVELLING))
def test_files_travel_to_the_hub(file):
    """transformers copies these to the Hub flat, by a line pattern; see what that pattern cannot follow."""
    path = PACKAGE / "models" / file
    text = path.read_text()
    for module, level, _ in imports(path):
        assert level <= 1
        assert level == 0 or re.fullmatch(r"\w+", module), f"{module}: only flat siblings, by name"
        if level == 1:
            assert f"{module}.py" in TRAVELLING
        elif not module.startswith("hf_internimage"):  # every user of the repository needs these
            package = module.partition(".")[0]
            assert package in {"numpy", "torch", "transformers"} | set(sys.stdlib_module_names), (
                f"{file} imports {module}"
            )
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    for string in filter(lambda value: isinstance(value, str), strings):
        assert not re.search(r"^\s*(from|import)\s+\.", string, re.MULTILINE), "a docstring that looks like an import"
    if file.startswith(("configuration", "modeling", "layers")):
        assert "from __future__ import annotations" not in text
    guarded = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Try) and any("hf_internimage" in ast.dump(part) for part in node.body)
    ]
    mentions = [module for module, level, _ in imports(path) if level == 0 and module.startswith("hf_internimage")]
    assert len(mentions) == len(guarded)


def test_table_of_models():
    for model_type, entry in auto.MODELS.items():
        config = auto.load(entry.config)
        assert config.model_type == model_type
        if entry.package is None:
            assert all(auto.load(name).config_class is config for name in entry.models.values())


def test_what_trainer_and_accelerate_read():
    """Losses are means already; blocks with a sum around them stay on one device."""
    blocks = {"InternImageStem", "InternImageLayer", "InternImageDownsample"}
    flash_blocks = {"InternImageStem", "FlashInternImageLayer", "InternImageDownsample"}
    layers = {"DeformableDetrEncoderLayer", "DeformableDetrDecoderLayer"}
    for model_type, entry in auto.MODELS.items():
        for auto_class, name in entry.models.items() if entry.package is None else ():
            model = auto.load(name)
            expected = {"internimage_dino": blocks | layers, "flash_internimage": flash_blocks}.get(model_type, blocks)
            assert set(model._no_split_modules) == expected
            assert model.supports_gradient_checkpointing
            assert model.main_input_name == "pixel_values"
            if "For" in auto_class:
                assert model.accepts_loss_kwargs is False


def test_what_the_auto_classes_load():
    """Written out once more: a class that is missing in the table is missing in everything that is made from it."""
    detection = dict.fromkeys(("pil", "torchvision"), "InternImageDetectionImageProcessor")
    mask_rcnn = "InternImageMaskRCNNForInstanceSegmentation"
    found = {
        model_type: (
            {key: name.rpartition(".")[2] for key, name in {**entry.auto_map, **entry.processors}.items()},
            *(entry.travels, entry.package, entry.saved_processor),
        )
        for model_type, entry in auto.MODELS.items()
    }
    assert found == {
        "internimage": (
            {
                "AutoConfig": "InternImageConfig",
                "AutoModel": "InternImageModel",
                "AutoBackbone": "InternImageBackbone",
                "AutoModelForImageClassification": "InternImageForImageClassification",
                "pil": "InternImageImageProcessorPil",
                "torchvision": "InternImageImageProcessor",
            },
            *(True, None, "CLIPImageProcessor"),
        ),
        "flash_internimage": (
            {
                "AutoConfig": "FlashInternImageConfig",
                "AutoModel": "FlashInternImageModel",
                "AutoBackbone": "FlashInternImageBackbone",
                "AutoModelForImageClassification": "FlashInternImageForImageClassification",
                "pil": "InternImageImageProcessorPil",
                "torchvision": "InternImageImageProcessor",
            },
            *(True, None, "CLIPImageProcessor"),
        ),
        "cb_internimage": (
            {"AutoConfig": "CBInternImageConfig", "AutoBackbone": "CBInternImageBackbone"},
            *(True, None, None),
        ),
        "internimage_dino": (
            {
                "AutoConfig": "InternImageDinoConfig",
                "AutoModelForObjectDetection": "InternImageDinoForObjectDetection",
                **detection,
            },
            *(True, None, None),
        ),
        "internimage_mask_rcnn": (
            {
                "AutoConfig": "InternImageMaskRCNNConfig",
                "AutoModelForInstanceSegmentation": mask_rcnn,
                "AutoModelForObjectDetection": mask_rcnn,
                **detection,
            },
            *(False, "torchvision", None),
        ),
    }


def test_files_of_models_are_in_the_table():
    """Every configuration, model and image processor of models/ is reached from the table."""
    modules = {name.rpartition(".")[0] for name in auto.public_classes().values()}
    stems = {path.stem for path in (PACKAGE / "models").glob("*.py")}
    assert {stem for stem in stems if stem.startswith(("configuration_", "modeling_", "image_processing_"))} == modules


def test_source_prints_nothing_and_hides_nothing():
    for file in FILES:
        tree = ast.parse((PACKAGE / file).read_text())
        is_command = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        for node in ast.walk(tree):
            assert is_command or not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), file
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), file


def test_import_has_no_side_effects():
    """Nothing is printed, warned of, compiled, loaded from disk or asked of the network."""
    printed = run_python(
        """
        import socket, subprocess, sys, warnings
        import torch, transformers

        def refused(*args, **kwargs):
            raise AssertionError("the import started a process or opened a connection")

        subprocess.Popen.__init__ = socket.socket.connect = refused
        warnings.simplefilter("error")
        import hf_internimage

        backends = sorted(name for name in sys.modules if name.startswith("hf_internimage.ops.backends."))
        libraries = hf_internimage.ops.native._load.cache_info().currsize
        extras = {"datasets", "evaluate", "kornia", "kernels", "matplotlib"} & set(sys.modules)
        print(backends, libraries, sorted(extras), hf_internimage.__version__)
        """,
        fork=False,
    )
    assert printed == f"[] 0 [] {hf_internimage.__version__}\n"


@pytest.mark.parametrize(
    "first",
    [
        "import hf_internimage",
        "from hf_internimage import *",
        "from transformers import pipeline, Trainer; import hf_internimage",
        "import transformers.modeling_layers; import hf_internimage",
        "import hf_internimage; import transformers.modeling_layers",
        "import hf_internimage; import transformers.models.convnext.modeling_convnext",
        "import hf_internimage.models.modeling_internimage",
        "import hf_internimage.models.layers_internimage",
        "import hf_internimage.ops",
    ],
)
def test_registers_whatever_was_imported_first(first):
    printed = run_python(
        f"""
        {first}
        from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification
        from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

        config = AutoConfig.for_model("internimage", depths=[1, 1], groups=[4, 8])
        for auto in (AutoModel, AutoModelForImageClassification, AutoBackbone):
            print(type(auto.from_config(config)).__name__)
        print(IMAGE_PROCESSOR_MAPPING[type(config)]["pil"].__name__)
        """
    )
    assert printed.split() == [
        "InternImageModel",
        "InternImageForImageClassification",
        "InternImageBackbone",
        "InternImageImageProcessorPil",
    ]


def test_public_names():
    for name in hf_internimage.__all__:
        assert getattr(hf_internimage, name) is not None
    assert set(hf_internimage.__all__) <= set(dir(hf_internimage))
    with pytest.raises(AttributeError, match="no attribute 'InternVL'"):
        hf_internimage.InternVL  # noqa: B018


def test_modules_are_reached_from_the_package():
    """In a process that has imported none of them itself."""
    parts = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    public = sorted(
        {part for part in parts if part[0] != "_"} - {"atomic_write", "devices", "env", "plain_text", "tensors"}
    )
    printed = run_python(
        f"""
        import hf_internimage
        optional = {{"app", "reproduction", "training", "visualize"}}  # each needs an extra
        assert set({public}) - set(dir(hf_internimage)) == optional
        print([getattr(hf_internimage, name).__name__ for name in {public}])
        """
    )
    assert printed == f"{[f'hf_internimage.{name}' for name in public]}\n"


def test_configurations_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ["internimage"]}')
    with pytest.raises(ValueError, match=r"The config.json of \S+ has an unusable entry \(.+\); is it damaged\?"):
        auto.load_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"The config.json of \S+ is nested too deep; is it damaged\?"):
        auto.load_config(tmp_path)


def test_a_class_that_needs_torchvision_names_the_extra():
    """Or is there, if torchvision is; other ways to look at the package do without it."""
    name = "InternImageMaskRCNNForInstanceSegmentation"
    printed = run_python(
        f"""
        import sys
        sys.modules["torchvision"] = None  # as if it were not installed
        import hf_internimage
        from hf_internimage import *
        try:
            hf_internimage.{name}
        except ModuleNotFoundError as error:
            print(error)
        """,
        fork=False,
    )
    assert 'needs torchvision, which is not installed: pip install "hf-internimage[torchvision]"' in printed
    if why_no_torchvision() is None:
        assert getattr(hf_internimage, name).__name__ == name
