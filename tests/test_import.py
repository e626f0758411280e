# SPDX-License-Identifier: MIT
"""What importing the package does, and what may import what."""

import ast
import re
import sys

import pytest
from support.island import DETECTOR_ISLAND, PACKAGE
from support.loading import run_python

import hf_internimage

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
STDLIB = set(sys.stdlib_module_names)
# file -> (packages it may import, modules of ours it may import); the house rules, one line a file
ALLOWED = {
    "__init__.py": (set(), set(FILES)),
    "_registration.py": ({"transformers"}, set(FILES)),
    "configuration_cb_internimage.py": (set(), {"configuration_internimage.py"}),
    "configuration_internimage.py": ({"transformers"}, set()),
    "configuration_internimage_dino.py": (
        {"transformers"},
        {"configuration_cb_internimage.py", "configuration_internimage.py"},
    ),
    "dcnv3_reference.py": ({"torch"}, set()),
    "layers_internimage.py": (
        {"torch", "transformers", "hf_internimage"},
        {"configuration_internimage.py", "dcnv3_reference.py"},
    ),
    "loss_internimage_dino.py": ({"torch", "transformers"}, {"configuration_internimage_dino.py"}),
    "modeling_cb_internimage.py": (
        {"torch", "transformers"},
        {"configuration_cb_internimage.py", "layers_internimage.py", "modeling_internimage.py"},
    ),
    "modeling_internimage.py": ({"torch", "transformers"}, {"configuration_internimage.py", "layers_internimage.py"}),
    "modeling_internimage_dino.py": (
        {"torch", "transformers"},
        {"configuration_internimage_dino.py", "loss_internimage_dino.py"}
        | {"modeling_cb_internimage.py", "modeling_internimage.py"},
    ),
    "image_processing_internimage.py": ({"transformers"}, set()),
    "image_processing_internimage_detection.py": ({"numpy", "torch", "transformers"}, {"resizing.py"}),
    "image_processing_internimage_segmentation.py": (
        {"numpy", "torch", "transformers"},
        {"resizing.py", "semantic_maps.py"},
    ),
    "image_processing_pil_internimage.py": ({"transformers"}, set()),
    "configuration_internimage_mask_rcnn.py": ({"transformers"}, {"configuration_internimage.py"}),
    "conversion/rcnn.py": (
        {"torch", "transformers"},
        {"configuration_internimage_mask_rcnn.py", "rcnn/__init__.py"}
        | {"conversion/backbone.py", "conversion/renaming.py", "conversion/tensors.py"},
    ),
    "rcnn/__init__.py": (
        {"torch", "torchvision", "transformers"},
        {"configuration_internimage_mask_rcnn.py", "rcnn/masks.py", "rcnn/modeling.py"},
    ),
    "rcnn/masks.py": ({"torch"}, set()),
    "rcnn/modeling.py": (
        {"torch", "torchvision", "transformers"},
        {"configuration_internimage.py", "configuration_internimage_mask_rcnn.py", "modeling_internimage.py"}
        | {"rcnn/proposals.py", "rcnn/roi_heads.py"},
    ),
    "rcnn/proposals.py": ({"torch", "torchvision"}, {"configuration_internimage_mask_rcnn.py"}),
    "rcnn/roi_heads.py": (
        {"torch", "torchvision"},
        {"configuration_internimage_mask_rcnn.py", "rcnn/proposals.py"},
    ),
    "resizing.py": ({"numpy"}, set()),
    "segmentation.py": ({"numpy", "torch", "transformers"}, {"semantic_maps.py"}),
    "semantic_maps.py": ({"torch"}, set()),
    "checkpoints.py": (set(), set()),
    "conversion/__init__.py": (
        set(),
        {"conversion/classification.py", "conversion/labels.py", "conversion/tensors.py"},
    ),
    "conversion/backbone.py": (
        set(),
        {"configuration_internimage.py", "conversion/renaming.py", "conversion/tensors.py"},
    ),
    "conversion/classification.py": (
        {"torch"},
        {"configuration_internimage.py", "modeling_internimage.py"}
        | {"conversion/backbone.py", "conversion/renaming.py", "conversion/tensors.py"},
    ),
    "conversion/dino.py": (
        {"torch"},
        {"configuration_cb_internimage.py", "configuration_internimage.py", "configuration_internimage_dino.py"}
        | {"modeling_internimage_dino.py"}
        | {"conversion/backbone.py", "conversion/renaming.py", "conversion/tensors.py"},
    ),
    "conversion/files.py": ({"numpy", "safetensors", "torch", "transformers"}, {"conversion/tensors.py"}),
    "conversion/labels.py": (set(), set()),
    "conversion/mask2former.py": (
        {"torch", "transformers"},
        {"conversion/backbone.py", "conversion/renaming.py", "conversion/tensors.py"},
    ),
    "conversion/prepare.py": (
        set(),
        {"conversion/files.py", "conversion/prepare_classifier.py", "conversion/prepare_common.py"}
        | {"conversion/prepare_dense.py", "conversion/systems.py", "conversion/tensors.py"},
    ),
    "conversion/prepare_classifier.py": (
        {"torch"},
        {"checkpoints.py", "configuration_internimage.py", "hub.py", "conversion/classification.py"}
        | {"conversion/files.py", "conversion/labels.py", "conversion/prepare_common.py", "conversion/systems.py"}
        | {"conversion/tensors.py"},
    ),
    "conversion/prepare_common.py": (
        {"huggingface_hub", "torch", "transformers"},
        {"conversion/files.py", "conversion/labels.py", "conversion/systems.py", "conversion/tensors.py"},
    ),
    "conversion/prepare_dense.py": (
        {"torch", "transformers"},
        {"dense_checkpoints.py", "image_processing_internimage_detection.py"}
        | {"image_processing_internimage_segmentation.py", "conversion/backbone.py", "conversion/files.py"}
        | {"conversion/prepare_common.py", "conversion/systems.py", "conversion/tensors.py", "conversion/upernet.py"},
    ),
    "conversion/renaming.py": ({"torch"}, {"conversion/tensors.py"}),
    "conversion/systems.py": (
        {"torch", "transformers"},  # for types only
        {"conversion/renaming.py", "conversion/tensors.py"},
    ),
    "conversion/tensors.py": ({"torch"}, set()),
    "conversion/upernet.py": (
        {"torch", "transformers"},
        {"conversion/backbone.py", "conversion/renaming.py", "conversion/tensors.py"},
    ),
    "dense_checkpoints.py": (set(), set()),
    "cards.py": ({"huggingface_hub"}, {"checkpoints.py", "complexity.py", "configuration_internimage.py"}),
    "dense_cards.py": (
        {"huggingface_hub"},
        {"cards.py", "configuration_internimage.py", "dense_checkpoints.py"},
    ),
    "complexity.py": (
        {"torch", "transformers"},
        {"configuration_internimage.py", "layers_internimage.py", "modeling_internimage.py"},
    ),
    "heads.py": (
        {"torch", "transformers"},
        {"configuration_internimage.py", "modeling_cb_internimage.py", "modeling_internimage.py"},
    ),
    "hub.py": (
        {"torch", "transformers", "huggingface_hub"},
        {"conversion/__init__.py", "image_processing_internimage_detection.py", "image_processing_pil_internimage.py"},
    ),
    "training/__init__.py": (set(), set()),
    "training/augmentation.py": ({"numpy", "torch", "PIL"}, set()),
    "training/averaging.py": ({"safetensors", "torch"}, set()),
    "training/classification_accuracy.py": ({"datasets", "evaluate", "numpy"}, set()),  # stands alone
    "training/classification.py": (
        {"torch"},
        {"training/mixing.py", "training/optimization.py", "training/trainer.py"},
    ),
    "training/command_line.py": ({"torch", "transformers", "yaml"}, {"hub.py", "training/trainer.py"}),
    "training/dense_models.py": ({"transformers"}, {"training/command_line.py"}),
    "training/dense.py": (
        {"torch", "transformers"},
        {"heads.py", "training/optimization.py", "training/trainer.py"},
    ),
    "training/data.py": (
        {"datasets", "numpy", "torch", "PIL", "transformers"},
        {"training/images.py", "training/labels.py", "training/sources.py"},
    ),
    "training/box_overlays.py": (
        {"datasets", "matplotlib", "numpy", "PIL"},
        {"training/detection_data.py", "training/images.py", "training/report_style.py"},
    ),
    "training/coco_map.py": ({"datasets", "faster_coco_eval", "numpy", "torch", "transformers"}, set()),
    "training/detection.py": (
        {"torch", "transformers"},
        {"resizing.py", "training/coco_map.py", "training/dense.py"},
    ),
    "training/detection_augmentation.py": (
        {"kornia", "numpy", "torch", "PIL"},
        {"resizing.py", "training/detection_data.py"},
    ),
    "training/detection_data.py": (
        {"datasets", "numpy", "torch", "PIL", "transformers"},
        {"training/detection_sources.py", "training/images.py", "training/sources.py"},
    ),
    "training/detection_sources.py": ({"datasets"}, {"training/sources.py"}),
    "training/detection_outcome.py": (
        {"datasets", "huggingface_hub", "transformers"},
        {"training/box_overlays.py", "training/coco_map.py", "training/detection.py"}
        | {"training/detection_data.py", "training/publishing.py", "training/results.py"},
    ),
    "training/images.py": ({"datasets", "numpy", "torch", "PIL"}, set()),
    "training/labels.py": (
        {"datasets", "numpy", "pyarrow", "torch", "transformers"},
        {"training/images.py", "training/sources.py"},
    ),
    "training/mean_iou.py": ({"datasets", "evaluate", "numpy"}, set()),  # stands alone
    "training/metrics.py": ({"evaluate", "torch", "transformers"}, set()),
    "training/mixing.py": ({"torch"}, set()),
    "training/optimization.py": ({"torch"}, set()),
    "training/publishing.py": ({"huggingface_hub", "transformers"}, {"hub.py", "training/trainer.py"}),
    "training/outcome.py": (
        {"huggingface_hub", "transformers"},
        {"cards.py", "hub.py", "training/classification.py", "training/data.py", "training/images.py"}
        | {"training/publishing.py", "training/reports.py", "training/results.py"},
    ),
    "training/overlays.py": ({"matplotlib", "numpy", "PIL"}, {"training/report_style.py"}),
    "training/report_style.py": ({"matplotlib"}, set()),
    "training/reports.py": ({"matplotlib", "numpy", "PIL"}, {"training/report_style.py"}),
    "training/results.py": (
        {"torch", "transformers"},
        {"__init__.py", "ops/__init__.py", "training/sources.py"},
    ),
    "training/segmentation.py": (
        {"torch", "transformers"},
        {"semantic_maps.py", "training/dense.py", "training/metrics.py", "training/segmentation_augmentation.py"},
    ),
    "training/segmentation_augmentation.py": ({"kornia", "numpy", "torch", "PIL"}, {"resizing.py"}),
    "training/segmentation_data.py": (
        {"datasets", "numpy", "pyarrow", "torch", "PIL"},
        {"training/images.py", "training/segmentation_augmentation.py", "training/sources.py"},
    ),
    "training/segmentation_outcome.py": (
        {"datasets", "huggingface_hub", "numpy", "torch"},
        {"segmentation.py", "training/metrics.py", "training/overlays.py", "training/publishing.py"}
        | {"training/results.py", "training/segmentation.py", "training/segmentation_data.py"},
    ),
    "training/sources.py": ({"datasets", "numpy", "pyarrow", "transformers"}, {"training/images.py"}),
    "training/streams.py": ({"datasets", "torch", "transformers"}, {"training/images.py"}),
    "training/trainer.py": (
        {"torch", "transformers"},
        {"training/averaging.py", "training/streams.py"},
    ),
    "env.py": (
        {"torch", "transformers"},
        {"__init__.py", "ops/__init__.py", "ops/native.py", "ops/nvrtc.py", "ops/registry.py"},
    ),
    "ops/__init__.py": (set(), {"ops/dcnv3.py", "ops/registry.py"}),
    "ops/dcnv3.py": ({"torch"}, {"dcnv3_reference.py", "ops/eager.py", "ops/registry.py"}),
    "ops/registry.py": (set(), set()),
    "ops/eager.py": ({"torch"}, set()),
    "ops/native.py": ({"torch"}, set()),
    "ops/nvrtc.py": ({"torch", "huggingface_hub"}, set()),
    "ops/cuda_driver.py": ({"torch"}, set()),
    "ops/fixed_point.py": ({"torch"}, set()),
    "ops/layer.py": ({"torch"}, {"ops/eager.py", "ops/native.py", "ops/registry.py"}),
    "ops/backends/__init__.py": (set(), set()),
    "ops/backends/dcnv3_call.py": ({"torch"}, {"dcnv3_reference.py"}),
    "ops/backends/dcnv3_cpu.py": (
        {"torch"},
        {"dcnv3_reference.py", "ops/backends/dcnv3_call.py", "ops/native.py", "ops/registry.py"},
    ),
    "ops/backends/dcnv3_cuda.py": (
        {"torch"},
        {
            "dcnv3_reference.py",
            "ops/backends/dcnv3_call.py",
            "ops/cuda_driver.py",
            "ops/fixed_point.py",
            "ops/nvrtc.py",
            "ops/registry.py",
        },
    ),
    "ops/backends/dcnv3_hub.py": ({"torch"}, {"dcnv3_reference.py", "ops/registry.py"}),
    "ops/backends/dcnv3_triton.py": (
        {"torch"},
        {"dcnv3_reference.py", "ops/backends/dcnv3_triton_kernels.py", "ops/fixed_point.py", "ops/registry.py"},
    ),
    "ops/backends/dcnv3_triton_kernels.py": ({"triton"}, set()),
    "ops/backends/dcnv3_torch.py": ({"torch"}, {"dcnv3_reference.py", "ops/registry.py"}),
}


def imports(file):
    """(module, level, names) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, [alias.name for alias in node.names]


def test_every_file_has_a_rule():
    assert set(ALLOWED) == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_imports_only_what_it_may(file):
    packages, ours = ALLOWED[file]
    for module, level, names in imports(file):
        if level == 0:
            assert module.partition(".")[0] in packages | STDLIB, f"{file} imports {module}"
            continue
        base = (PACKAGE / file).parents[level - 1] / module.replace(".", "/")
        for name in names:  # a module of that package, or something in it
            paths = (base / f"{name}.py", base.with_suffix(".py"), base / "__init__.py")
            found = next(path for path in paths if path.exists()).relative_to(PACKAGE).as_posix()
            assert found in ours, f"{file} imports {'.' * level}{module} {names}"


@pytest.mark.parametrize("file", sorted(DETECTOR_ISLAND))
def test_island_files_travel(file):
    """transformers copies these to the Hub flat, by a line pattern; see what that pattern cannot follow."""
    text = (PACKAGE / file).read_text()
    for module, level, _ in imports(file):
        assert level <= 1
        assert level == 0 or re.fullmatch(r"\w+", module), f"{module}: only flat siblings, by name"
        if level == 1:
            assert f"{module}.py" in DETECTOR_ISLAND
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
    mentions = [module for module, level, _ in imports(file) if level == 0 and module.startswith("hf_internimage")]
    assert len(mentions) == len(guarded)


def test_source_prints_nothing_and_hides_nothing():
    for file in FILES:
        for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), file
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), file


def test_import_has_no_side_effects():
    printed = run_python(
        """
        import sys, warnings
        warnings.simplefilter("error")
        import hf_internimage
        heavy = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors"} & set(sys.modules)
        print(sorted(heavy), hf_internimage.__version__)
        """
    )
    assert printed == f"[] {hf_internimage.__version__}\n"


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
