# SPDX-License-Identifier: MIT
"""Our classes under the common tests of transformers. `make test-transformers` fetches and runs them.

Where a test cannot apply, it is set to None with the reason; so the tests of later releases run by themselves.
"""

import unittest
from unittest import mock

import pytest
import torch
from support import transformers_source
from support.golden_data import tiny_config
from support.golden_detectors import objects, tiny_composite_config, tiny_dino_config
from support.tiny_models import OPTIONS
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto import modeling_auto
from transformers.utils import is_torchvision_available

import hf_internimage
from hf_internimage import (
    CBInternImageBackbone,
    CBInternImageConfig,
    InternImageBackbone,
    InternImageConfig,
    InternImageDetectionImageProcessor,
    InternImageDinoConfig,
    InternImageDinoForObjectDetection,
    InternImageForImageClassification,
    InternImageImageProcessorPil,
    InternImageModel,
    InternImageSegmentationImageProcessor,
)
from hf_internimage.models import auto

if reason := transformers_source.why_not():
    pytest.skip(reason, allow_module_level=True)

modeling = transformers_source.load("test_modeling_common")
backbones = transformers_source.load("test_backbone_common")
configurations = transformers_source.load("test_configuration_common")
processors = transformers_source.load("test_image_processing_common")


class ModelTester:
    batch_size, num_channels, image_size, num_labels = 2, 3, 64, 5
    is_training = True

    def __init__(self, make_config):
        self.get_config = make_config
        config = make_config()
        self.num_hidden_layers = getattr(config, "backbone_config", config).num_stages

    def prepare_config_and_inputs_for_common(self):
        pixel_values = torch.randn(self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": pixel_values}


class ModelTests(modeling.ModelTesterMixin):
    has_attentions = False
    test_resize_embeddings = False
    skip_test_image_features_output_shape = True  # theirs is (N, L, C), ours (N, C, H, W)

    test_hidden_states_output = None  # of sequences; ours are in test_modeling.py
    test_model_get_set_embeddings = None  # there is no nn.Embedding
    test_model_is_small = None  # the CLIP projector has one size
    test_num_layers_is_small = None  # some options need a third stage

    def setUp(self):
        self.model_tester = ModelTester(self.make_config)
        # Theirs have no loss because they are in these tables.
        for table, auto_class in (
            (modeling_auto.MODEL_MAPPING_NAMES, "AutoModel"),
            (modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, "AutoBackbone"),
        ):
            names = {
                model_type: auto.model_class(model_type, auto_class).__name__
                for model_type in auto.model_types(auto_class)
            }
            patch = mock.patch.dict(table, names)
            patch.start()
            self.addCleanup(patch.stop)


class TestT(ModelTests, unittest.TestCase):
    all_model_classes = (InternImageModel, InternImageForImageClassification, InternImageBackbone)
    options = {}

    def make_config(self):
        return tiny_config(num_labels=5, **self.options)


class TestB(TestT):
    options = OPTIONS["b"]


class TestH(TestT):
    options = OPTIONS["h"]


class TestCompositeModel(ModelTests, unittest.TestCase):
    all_model_classes = (CBInternImageBackbone,)
    test_retain_grad_hidden_states_attentions = None  # of the first output, which is a tuple here

    def make_config(self):
        return tiny_composite_config()


class TestBackbone(backbones.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (InternImageBackbone,)
    config_class = InternImageConfig
    has_attentions = False

    def setUp(self):
        self.model_tester = ModelTester(tiny_config)


class TestComposite(TestBackbone):
    all_model_classes = (CBInternImageBackbone,)
    config_class = CBInternImageConfig

    def setUp(self):
        self.model_tester = ModelTester(tiny_composite_config)


class TestDino(ModelTests, unittest.TestCase):
    all_model_classes = (InternImageDinoForObjectDetection,)
    make_config = staticmethod(tiny_dino_config)
    test_config_attn_implementation_setter = None  # the backbone has no attention, and refuses "sdpa"
    test_retain_grad_hidden_states_attentions = None  # the hidden states have other names

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "labels": objects()} if return_labels else inputs


class TestConfigurations(unittest.TestCase):
    def test_internimage(self):
        configurations.ConfigTester(
            self,
            InternImageConfig,
            has_text_modality=False,
            channels=32,
            common_properties=["num_channels", "hidden_sizes", "num_hidden_layers"],
        ).run_common_tests()

    def test_composite(self):
        configurations.ConfigTester(
            self,
            CBInternImageConfig,
            has_text_modality=False,
            channels=32,
            common_properties=["num_channels", "hidden_sizes", "num_hidden_layers"],
        ).run_common_tests()

    def test_dino(self):
        self.model_tester = ModelTester(tiny_dino_config)
        configurations.ConfigTester(self, InternImageDinoConfig, has_text_modality=False, d_model=64).run_common_tests()

    def test_mask_rcnn(self):
        configurations.ConfigTester(
            self, hf_internimage.InternImageMaskRCNNConfig, has_text_modality=False, fpn_channels=64
        ).run_common_tests()


class ProcessorTester:
    batch_size, num_channels = 3, 3

    def __init__(self, parent):
        self.parent = parent
        self.image_processing_classes = parent.classes

    def prepare_image_processor_dict(self):
        return self.parent.fields

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return processors.prepare_image_inputs(
            self.batch_size,
            30,
            60,
            self.num_channels,
            None,
            equal_resolution or self.parent.equal_resolution,
            numpify,
            torchify,
        )

    def prepare_processor_inputs(self, **kwargs):
        return {"images": self.prepare_image_inputs(**kwargs)}

    def expected_output_image_shape(self, images):
        return (self.num_channels, *self.parent.output_size)

    def prepare_post_process_semantic_segmentation_inputs(self):
        shape = {"num_labels": 5, "height": 8, "width": 12}
        return {"outputs": SemanticSegmenterOutput(logits=torch.randn(self.batch_size, *shape.values()))}, shape


class ProcessorTests(processors.ImageProcessingTestMixin):
    test_new_models_require_torchvision_backend = None  # it knows the models by the names of their folders
    image_processor_tester_class = ProcessorTester
    equal_resolution = False
    test_cast_dtype = True


class TestClassificationProcessor(ProcessorTests, unittest.TestCase):
    classes = {"pil": InternImageImageProcessorPil}
    if is_torchvision_available():
        classes["torchvision"] = hf_internimage.InternImageImageProcessor
    fields = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "image_mean": [0.4, 0.5, 0.6]}
    output_size = (24, 24)


class TestDetectionProcessor(ProcessorTests, unittest.TestCase):
    classes = {"pil": InternImageDetectionImageProcessor}
    fields = {"size": {"shortest_edge": 24, "longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    output_size = (64, 64)


class TestSegmentationProcessor(processors.PostProcessSemanticSegmentationTestMixin, ProcessorTests, unittest.TestCase):
    classes = {"pil": InternImageSegmentationImageProcessor}
    fields = {"size": {"shortest_edge": 24, "longest_edge": 64}}
    output_size = (32, 32)
    equal_resolution = True
