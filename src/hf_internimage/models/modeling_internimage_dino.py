# SPDX-License-Identifier: MIT
"""DINO in PyTorch: the original's detector, on an InternImage backbone and transformers' Deformable DETR layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone, DeformableDetrConfig
from transformers import initialization as init
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrDecoderLayer,
    DeformableDetrEncoder,
    DeformableDetrMLPPredictionHead,
    DeformableDetrMultiscaleDeformableAttention,
    DeformableDetrPreTrainedModel,
    DeformableDetrSelfAttention,
    inverse_sigmoid,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_internimage_dino import InternImageDinoConfig
from .layers_internimage import linear_layer
from .loading_report import LoadingReportMixin
from .loss_internimage_dino import DenoisingQueries, dino_loss, make_denoising_queries
from .modeling_cb_internimage import CBInternImageBackbone
from .modeling_flash_internimage import FlashInternImageBackbone
from .modeling_internimage import InternImageBackbone

_NORM_GROUPS = 32
_CLASS_PRIOR = 0.01  # probability of each class at initialisation
_SMALLEST_PROPOSAL = 0.05  # side of the boxes proposed on the finest level, in units of the image
_BACKBONES: dict[str, Callable[[Any], nn.Module]] = {
    "internimage": InternImageBackbone,
    "cb_internimage": CBInternImageBackbone,
    "flash_internimage": FlashInternImageBackbone,
}


@dataclass
class InternImageDinoObjectDetectionOutput(ModelOutput):
    """Outputs of the detector for N images, Q queries, C classes and d = d_model.

    Boxes are (centre x, centre y, width, height) in units of the unpadded image.

    Attributes:
        loss, loss_dict: the weighted sum, and its terms; if labels are given.
        logits: (N, Q, C), for a sigmoid: classes do not exclude each other, and there is no background class.
        pred_boxes: (N, Q, 4).
        auxiliary_outputs: `logits` and `pred_boxes` of each decoder layer except the last; if labels are given and
            the configuration says `auxiliary_loss`.
        last_hidden_state: (N, Q, d), normalised state of the last decoder layer.
        decoder_hidden_states: the decoder's input and each layer's normalised state, (N, Q, d) each; if requested.
        encoder_last_hidden_state: (N, S, d), positions of all feature levels, from fine to coarse.
        encoder_hidden_states: the encoder's input and each layer's output, (N, S, d) each; if requested.
        encoder_topk_indices: (N, Q), the positions chosen as queries, in order.
        encoder_topk_logits, encoder_topk_boxes: (N, Q, C) and (N, Q, 4), the encoder's predictions there.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    auxiliary_outputs: list[dict[str, torch.Tensor]] | None = None
    last_hidden_state: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_topk_indices: torch.Tensor | None = None
    encoder_topk_logits: torch.Tensor | None = None
    encoder_topk_boxes: torch.Tensor | None = None


class InternImageDinoSampling(nn.Module):
    """Multi-scale sampling in the dtype of the positions: half precision would move them by whole pixels."""

    def __init__(self, sampling: nn.Module) -> None:
        super().__init__()
        self.sampling = sampling

    def forward(
        self,
        value: torch.Tensor,
        spatial_shapes: torch.Tensor,
        spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: torch.Tensor,
        locations: torch.Tensor,
        weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        sampled = self.sampling(
            value.to(locations.dtype),
            spatial_shapes,
            spatial_shapes_list,
            level_start_index,
            locations,
            weights.to(locations.dtype),
            im2col_step,
        )
        return sampled.to(value.dtype)


@dataclass
class _Levels:
    """Feature levels, flattened and concatenated from fine to coarse: S positions in total."""

    states: torch.Tensor  # (N, S, d)
    positions: torch.Tensor  # (N, S, d)
    mask: torch.Tensor  # (N, S) bool, True on the image
    valid_ratios: torch.Tensor  # (N, L, 2), share of (width, height) inside the image
    proposals: torch.Tensor  # (N, S, 4), logits of a box around each position; infinite where there is none
    shapes_list: list[tuple[int, int]]
    shapes: torch.Tensor  # (L, 2)
    starts: torch.Tensor  # (L,)


class InternImageDinoBoxHead(DeformableDetrMLPPredictionHead):
    """Correction of the logits of a reference box (N, Q, 4); zero at initialisation."""


class InternImageDinoPreTrainedModel(LoadingReportMixin, DeformableDetrPreTrainedModel):
    """Weight initialisation and class attributes for transformers."""

    config: InternImageDinoConfig  # type: ignore[assignment]
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_flash_attn = False
    _supports_flex_attn = False
    _no_split_modules = [
        "InternImageStem",
        "InternImageLayer",
        "InternImageDownsample",
        "DeformableDetrEncoderLayer",
        "DeformableDetrDecoderLayer",
    ]
    _keys_to_ignore_on_load_unexpected: list[str] = []
    _classifier_modules = ("class_heads",)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Initialise a module as in models of transformers.

        With `is_custom_code`, modules without parameters of their own would be skipped.
        """
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module as the original does, except biases of the transformer, which start at zero.

        Source: OpenGVLab/InternImage@31c962d, detection/mmdet_custom/models; mmdet 2.28, whose base classes it uses.
        """
        super()._init_weights(module)  # deformable attention as well, after its linear layers
        if isinstance(module, nn.Linear) and getattr(module, "initialization", None) == "class_prior":
            _init_as_pytorch(module)
            init.constant_(module.bias, -math.log((1 - _CLASS_PRIOR) / _CLASS_PRIOR))
        elif isinstance(module, InternImageDinoBoxHead):
            *hidden, last = (layer for layer in module.layers if isinstance(layer, nn.Linear))
            for layer in hidden:
                _init_as_pytorch(layer)
            init.zeros_(last.weight)
            init.zeros_(last.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, DeformableDetrSelfAttention):  # the original draws all three as one matrix
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))


class InternImageDinoEncoder(InternImageDinoPreTrainedModel, DeformableDetrEncoder):
    """The encoder of Deformable DETR, with the initialisation of the detector."""

    config: DeformableDetrConfig  # type: ignore[assignment]

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.register_forward_pre_hook(_pass_positions_by_position, with_kwargs=True)


class InternImageDinoDecoder(nn.Module):
    """Decoder layers whose query positions encode the reference boxes."""

    def __init__(self, config: InternImageDinoConfig, layers_config: DeformableDetrConfig) -> None:
        super().__init__()
        width = config.d_model
        self.temperature = config.query_position_temperature
        self.layers = nn.ModuleList(DeformableDetrDecoderLayer(layers_config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.reference_point_head = DeformableDetrMLPPredictionHead(2 * width, width, width, 2)

    def step(
        self,
        index: int,
        states: torch.Tensor,
        references: torch.Tensor,
        memory: torch.Tensor,
        levels: _Levels,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the states (N, Q, d) after layer `index`, with reference boxes `references` (N, Q, 4)."""
        ratios = levels.valid_ratios.repeat(1, 1, 2)[:, None]  # (N, 1, L, 4): x, y, w, h
        reference_boxes = references[:, :, None] * ratios
        order = reference_boxes[:, :, 0, [1, 0, 2, 3]]  # y, x, w, h on the finest level
        encoded = _sine_encoding(order, states.shape[-1] // 2, self.temperature)
        return self.layers[index](
            states,
            self.reference_point_head(encoded.to(states.dtype)),
            reference_boxes,
            levels.shapes,
            levels.shapes_list,
            levels.starts,
            memory,
            levels.mask,
            attention_mask=attention_mask,
        )


class InternImageDinoForObjectDetection(InternImageDinoPreTrainedModel):
    """DINO: a two-stage detector whose encoder proposes boxes, which the decoder refines layer by layer."""

    accepts_loss_kwargs = False

    def __init__(self, config: InternImageDinoConfig) -> None:
        config.check_architecture()  # a field may have been set since the configuration was made
        super().__init__(config)
        width = config.d_model
        layers_config = config.deformable_detr_config()
        layers_config._attn_implementation = config._attn_implementation
        backbone_config = config.backbone_config
        self.num_labels = int(config.num_labels or 0)
        self.backbone: Any = _BACKBONES.get(backbone_config.model_type, AutoBackbone.from_config)(backbone_config)
        channels = list(self.backbone.channels)
        self.input_proj = nn.ModuleList(_projection(count, width, kernel_size=1) for count in channels)
        for index in range(config.num_feature_levels - len(channels)):
            wider = width if index else channels[-1]
            self.input_proj.append(_projection(wider, width, kernel_size=3, stride=2, padding=1))
        self.level_embeddings = nn.Embedding(config.num_feature_levels, width)
        self.encoder = InternImageDinoEncoder(layers_config)
        self.encoder_output = nn.Linear(width, width)
        self.encoder_output_norm = nn.LayerNorm(width)
        self.query_embeddings = nn.Embedding(config.num_queries, width)
        self.label_embeddings = nn.Embedding(self.num_labels, width)
        self.decoder = InternImageDinoDecoder(config, layers_config)
        # One for each decoder layer, then one for the encoder.
        heads = config.decoder_layers + 1
        self.class_heads = nn.ModuleList(linear_layer(width, self.num_labels, "class_prior") for _ in range(heads))
        self.box_heads = nn.ModuleList(InternImageDinoBoxHead(width, width, 4, 3) for _ in range(heads))
        for module in list(self.modules()):
            if isinstance(module, DeformableDetrMultiscaleDeformableAttention):
                module.attn = InternImageDinoSampling(module.attn)  # type: ignore[assignment]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> InternImageDinoObjectDetectionOutput:
        """Detect objects in a batch of images, and compute the loss if labels are given.

        Args:
            pixel_values: normalised images (N, num_channels, H, W), smaller ones padded with 0 at the right and bottom.
                Multiples of 32 with the composite backbone, else any size. The original pads to multiples of 32.
            pixel_mask: (N, H, W), 1 on the image and 0 on padding; no padding if None.
            labels: for each image a dict with `class_labels` (n,), integers, and `boxes` (n, 4), (centre x, centre y,
                width, height) in units of the unpadded image. In training, denoising queries are made from them.
            output_hidden_states: also return the states of all layers.
            return_dict: False for a tuple.

        Returns:
            Classes and boxes of `num_queries` queries, or of one per feature position if there are fewer positions.

        Raises:
            ValueError: for pixel values or a mask of another shape, or labels of another number of images.

        Source: https://arxiv.org/abs/2203.03605; OpenGVLab/InternImage@31c962d, detection/mmdet_custom/models.
        """
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        pixel_values = _check_arguments(pixel_values, pixel_mask, labels)
        maps = self._feature_levels(pixel_values)
        levels = self._flatten(maps, pixel_mask, pixel_values)
        encoded = self.encoder(
            inputs_embeds=levels.states,
            attention_mask=levels.mask,
            spatial_position_embeddings=levels.positions,
            spatial_shapes=levels.shapes,
            spatial_shapes_list=levels.shapes_list,
            level_start_index=levels.starts,
            valid_ratios=levels.valid_ratios,
            output_hidden_states=bool(output_hidden_states),
            return_dict=True,
        )
        memory = encoded.last_hidden_state
        chosen, encoder_logits, box_logits = self._propose(memory, levels)

        denoising = None
        if labels is not None and self.training and config.num_denoising:
            denoising = make_denoising_queries(
                labels,
                chosen.shape[1],
                self.num_labels,
                num_denoising=config.num_denoising,
                label_noise=config.label_noise_ratio,
                box_noise=config.box_noise_scale,
            )
        states, logits, boxes = self._decode(memory, levels, box_logits.detach(), denoising)
        own = slice(denoising.labels.shape[1] if denoising is not None else 0, None)

        loss, loss_dict, auxiliary = None, None, None
        encoder_boxes = box_logits.sigmoid()
        if labels is not None:
            all_logits, all_boxes = torch.stack(logits), torch.stack(boxes)  # (L, N, D + Q, C or 4)
            split = own.start
            loss, loss_dict = dino_loss(
                config,
                all_logits[:, :, split:],
                all_boxes[:, :, split:],
                encoder_logits,
                encoder_boxes,
                denoising,
                all_logits[:, :, :split] if denoising is not None else None,
                all_boxes[:, :, :split] if denoising is not None else None,
                labels,
            )
            # Every parameter gets a gradient, as distributed training wants.
            if denoising is None:
                loss = loss + 0.0 * self.label_embeddings.weight.sum()
            if not config.auxiliary_loss:
                loss = loss + 0.0 * (all_logits.sum() + all_boxes.sum())
            if config.auxiliary_loss:
                pairs = zip(logits[:-1], boxes[:-1], strict=True)
                auxiliary = [{"logits": a[:, own], "pred_boxes": b[:, own]} for a, b in pairs]
        return InternImageDinoObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits[-1][:, own],
            pred_boxes=boxes[-1][:, own],
            auxiliary_outputs=auxiliary,
            last_hidden_state=states[-1][:, own],
            decoder_hidden_states=tuple(state[:, own] for state in states) if output_hidden_states else None,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoded.hidden_states,
            encoder_topk_indices=chosen,
            encoder_topk_logits=encoder_logits,
            encoder_topk_boxes=encoder_boxes,
        )

    def _feature_levels(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Return one map (N, d, h, w) for each feature level, from fine to coarse."""
        features = self.backbone(pixel_values, return_dict=True).feature_maps
        maps = [project(feature) for project, feature in zip(self.input_proj, features, strict=False)]
        for index in range(len(features), len(self.input_proj)):
            maps.append(self.input_proj[index](features[-1] if index == len(features) else maps[-1]))
        return maps

    def _flatten(self, maps: list[torch.Tensor], pixel_mask: torch.Tensor | None, pixels: torch.Tensor) -> _Levels:
        """Flatten and concatenate the maps, with positions, masks and proposed boxes."""
        if pixel_mask is None:
            pixel_mask = pixels.new_ones(pixels.shape[:1] + pixels.shape[-2:])
        precise = torch.promote_types(maps[0].dtype, torch.float32)  # for geometry
        embeddings = self.level_embeddings(torch.arange(len(maps), device=maps[0].device))
        masks, positions, ratios, proposals, shapes_list = [], [], [], [], []
        for level, states in enumerate(maps):
            height, width = states.shape[-2:]
            mask = F.interpolate(pixel_mask[None].float(), size=(height, width)).bool()[0]  # (N, H, W) -> (N, h, w)
            rows, columns = mask.cumsum(1, dtype=precise), mask.cumsum(2, dtype=precise)
            relative = torch.stack((rows / (rows[:, -1:] + 1e-6), columns / (columns[:, :, -1:] + 1e-6)), -1)
            encoded = _sine_encoding(relative, states.shape[1] // 2, self.config.encoder_position_temperature)
            positions.append(encoded.to(states.dtype).flatten(1, 2) + embeddings[level])
            # (N, 2): number of columns and rows inside the image
            extent = torch.stack((mask[:, 0].sum(1), mask[:, :, 0].sum(1)), -1).to(precise)
            # No tensor of the two sizes: torch.export would keep those of its example.
            ratios.append(torch.stack((extent[:, 0] / width, extent[:, 1] / height), -1))
            side = _SMALLEST_PROPOSAL * 2**level
            proposals.append(_boxes_around_positions(extent, height, width, side))
            masks.append(mask.flatten(1))
            shapes_list.append((height, width))
        mask, boxes = torch.cat(masks, 1), torch.cat(proposals, 1)
        inside = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & mask
        shapes = torch.tensor(shapes_list, device=mask.device)
        return _Levels(
            states=torch.cat([states.flatten(2).transpose(1, 2) for states in maps], 1),
            positions=torch.cat(positions, 1),
            mask=mask,
            valid_ratios=torch.stack(ratios, 1),
            proposals=torch.log(boxes / (1 - boxes)).masked_fill(~inside[..., None], float("inf")),
            shapes_list=shapes_list,
            shapes=shapes,
            starts=F.pad(shapes.prod(1).cumsum(0)[:-1], (1, 0)),
        )

    def _propose(self, memory: torch.Tensor, levels: _Levels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the positions with the best classes (N, Q), their class logits (N, Q, C) and box logits (N, Q, 4)."""
        usable = levels.proposals.isfinite().all(-1, keepdim=True)
        candidates = self.encoder_output_norm(self.encoder_output(memory.masked_fill(~usable, 0.0)))
        logits = self.class_heads[-1](candidates)
        boxes = self.box_heads[-1](candidates) + levels.proposals
        count = min(self.config.num_queries, memory.shape[1])
        chosen = logits.amax(-1).topk(count, dim=1).indices
        return chosen, _gather_rows(logits, chosen), _gather_rows(boxes, chosen)

    def _decode(
        self, memory: torch.Tensor, levels: _Levels, box_logits: torch.Tensor, denoising: DenoisingQueries | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Return normalised states (and the input), class logits and boxes of each layer.

        Denoising queries come first.
        """
        count = box_logits.shape[1]
        queries = self.query_embeddings(torch.arange(count, device=memory.device)).to(memory.dtype)
        states = queries.repeat(memory.shape[0], 1, 1)
        attention_mask = None
        if denoising is not None:
            states = torch.cat([self._embed_labels(denoising.labels).to(states.dtype), states], 1)
            box_logits = torch.cat([denoising.reference_logits.to(box_logits.dtype), box_logits], 1)
            blocked = denoising.attention_mask
            lowest = torch.finfo(states.dtype).min
            attention_mask = states.new_zeros(blocked.shape).masked_fill(blocked, lowest)[None, None]

        eps = self.config.inverse_sigmoid_eps
        reference_boxes = refined = box_logits.sigmoid()
        collected, logits, boxes = [states], [], []
        for index in range(len(self.decoder.layers)):
            states = self.decoder.step(index, states, reference_boxes, memory, levels, attention_mask)
            normed = self.decoder.norm(states)
            collected.append(normed)
            logits.append(self.class_heads[index](normed))
            boxes.append((self.box_heads[index](normed) + inverse_sigmoid(refined, eps)).sigmoid())
            if index + 1 < len(self.decoder.layers):
                # Computed from the state before the norm, unlike the layer's own boxes. The gradient of the next
                # layer's boxes passes through it ("look forward twice"), that of its positions does not.
                refined = (self.box_heads[index](states) + inverse_sigmoid(reference_boxes, eps)).sigmoid()
                reference_boxes = refined.detach()
        return collected, logits, boxes

    def _embed_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the content of denoising queries (N, D, d) for classes (N, D); zero for `num_labels` (padding)."""
        padding = labels.eq(self.num_labels)
        return self.label_embeddings(labels.masked_fill(padding, 0)).masked_fill(padding[..., None], 0.0)


def _pass_positions_by_position(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the learned positions of an encoder layer its third argument.

    Reentrant checkpointing computes no gradients of arguments that come by name.
    """
    kwargs = dict(kwargs)
    return (*args, kwargs.pop("spatial_position_embeddings")), kwargs


def _projection(channels: int, width: int, **convolution: Any) -> nn.Sequential:
    """Return a convolution to `width` channels with a group norm."""
    return nn.Sequential(nn.Conv2d(channels, width, bias=False, **convolution), nn.GroupNorm(_NORM_GROUPS, width))


def _sine_encoding(coordinates: torch.Tensor, features: int, temperature: float) -> torch.Tensor:
    """Encode coordinates (..., K) in units of the image -> (..., K * features); sine and cosine alternate."""
    exponents = torch.arange(0, features, 2, dtype=coordinates.dtype, device=coordinates.device) / features
    angles = (2 * math.pi * coordinates)[..., None] / temperature**exponents
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-3)


def _boxes_around_positions(extent: torch.Tensor, height: int, width: int, side: float) -> torch.Tensor:
    """Return boxes (N, height * width, 4) around each position, with sides `side`, all in units of the image.

    `extent` (N, 2) is the (width, height) of the images in positions; positions on padding are beyond 1.
    """
    columns, rows = (torch.arange(size, dtype=extent.dtype, device=extent.device) + 0.5 for size in (width, height))
    shape = (extent.shape[0], height, width)
    x = (columns / extent[:, :1])[:, None, :].expand(shape)
    y = (rows / extent[:, 1:])[:, :, None].expand(shape)
    sides = extent.new_full(shape, side)
    return torch.stack((x, y, sides, sides), -1).flatten(1, 2)


def _gather_rows(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return rows `indices` (N, Q) of `values` (N, S, F): (N, Q, F)."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


def _init_as_pytorch(layer: nn.Linear) -> None:
    """Initialise a linear layer as PyTorch does by default."""
    bound = 1 / math.sqrt(layer.in_features)
    init.uniform_(layer.weight, -bound, bound)
    init.uniform_(layer.bias, -bound, bound)


def _check_arguments(
    pixel_values: torch.Tensor | None, pixel_mask: torch.Tensor | None, labels: Sequence[Any] | None
) -> torch.Tensor:
    """Return the pixels; raise ValueError if shapes of arguments disagree.

    The backbone checks channels and sizes.
    """
    if pixel_values is None or pixel_values.dim() != 4:
        description = "None" if pixel_values is None else f"a tensor of shape {tuple(pixel_values.shape)}"
        raise ValueError(f"pixel_values is {description}, expected a tensor (N, num_channels, height, width).")
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if pixel_mask is not None and tuple(pixel_mask.shape) != expected:
        raise ValueError(
            f"pixel_mask has shape {tuple(pixel_mask.shape)}, expected {expected}, (N, height, width) of pixel_values."
        )
    if labels is not None and len(labels) != expected[0]:
        raise ValueError(f"labels has {len(labels)} entries, expected one for each of the {expected[0]} images.")
    return pixel_values


__all__ = [
    "InternImageDinoForObjectDetection",
    "InternImageDinoObjectDetectionOutput",
    "InternImageDinoPreTrainedModel",
]
