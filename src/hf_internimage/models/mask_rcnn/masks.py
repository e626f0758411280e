# SPDX-License-Identifier: MIT
"""Post-processing of outputs: boxes and masks in pixels of the original images."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


def paste_mask(mask: torch.Tensor, box: torch.Tensor, height: int, width: int, threshold: float = 0.5) -> torch.Tensor:
    """Paste the mask of a box into the whole image: interpolated at pixel centres, 1 where at least `threshold`.

    Shapes: mask (m, m) probabilities of the box, box (4,) xyxy in pixels -> (height, width) bool.
    Source: `_do_paste_mask` of mmdet 2.28.
    """
    x0, y0, x1, y1 = box.tolist()
    left, right = max(int(x0) - 1, 0), min(int(x1) + 2, width)
    top, bottom = max(int(y0) - 1, 0), min(int(y1) + 2, height)
    result = torch.zeros(height, width, dtype=torch.bool, device=mask.device)
    if x1 <= x0 or y1 <= y0 or left >= right or top >= bottom:
        return result
    x = (torch.arange(left, right, dtype=mask.dtype, device=mask.device) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(top, bottom, dtype=mask.dtype, device=mask.device) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    pasted = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
    result[top:bottom, left:right] = pasted >= threshold
    return result


def post_process_instance_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    mask_threshold: float = 0.5,
) -> list[dict[str, torch.Tensor]]:
    """Return the detections of each image, with masks.

    Args:
        outputs: outputs of `InternImageMaskRCNNForInstanceSegmentation`.
        threshold: detections need a greater score; the scores of the original's evaluation start at 0.05.
        target_sizes: (height, width) of each original image, in pixels.
        mask_threshold: smallest probability of a pixel of the object.

    Returns:
        Per image, best first: `scores` (K,), `labels` (K,), `boxes` (K, 4) xyxy in pixels, `masks` (K, height, width)
        bool.

    Raises:
        ValueError: if there are not as many sizes as images.
    """
    sizes = [tuple(int(side) for side in size) for size in (target_sizes if target_sizes is not None else [])]
    if len(sizes) != len(outputs.logits):
        raise ValueError(
            f"target_sizes has {len(sizes)} entries for {len(outputs.logits)} images; give (height, width) of each."
        )
    results = []
    probabilities = outputs.logits.sigmoid()  # of the whole batch: the same bits as the image processor's scores
    for image_probabilities, boxes, masks, (height, width) in zip(
        probabilities, outputs.pred_boxes, outputs.box_masks, sizes, strict=True
    ):
        scores, labels = image_probabilities.max(1)
        keep = scores > threshold
        (x, y, w, h), scale = boxes[keep].unbind(1), boxes.new_tensor([width, height, width, height])
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1) * scale
        pasted = [
            paste_mask(mask, box, height, width, mask_threshold) for mask, box in zip(masks[keep], corners, strict=True)
        ]
        results.append(
            {
                "scores": scores[keep],
                "labels": labels[keep],
                "boxes": corners,
                "masks": torch.stack(pasted) if pasted else masks.new_zeros(0, height, width, dtype=torch.bool),
            }
        )
    return results


__all__ = ["paste_mask", "post_process_instance_segmentation"]
