# SPDX-License-Identifier: MIT
"""DCNv3 as a layer with the authors' arguments and parameter names, for blocks and weights of other models."""

from torch.nn import init

from .models.configuration_internimage import InternImageConfig
from .models.layers_internimage import InternImageDeformableConvolution


class DCNv3(InternImageDeformableConvolution):
    """DCNv3 with its projections, offsets, masks and their softmax: (N, H, W, C) -> (N, H, W, C).

    Constructor, names of the parameters and initial values are those of the authors' modules `DCNv3` and
    `DCNv3_pytorch`, which are the same here, on any device. `stride`, `pad` and `dilation` are those of the operator.
    Offsets are computed at every input pixel, therefore they must keep the size: stride 1, and for a kernel of 3 for
    example `pad` = `dilation`.

    Args:
        channels: C.
        kernel_size: taps of the operator in each direction.
        dw_kernel_size: kernel of the depth-wise convolution before offsets and masks, odd; `kernel_size` if None.
        stride: distance of the sampling centres, in pixels.
        pad: zero pixels around the input.
        dilation: distance of the taps, in pixels.
        group: groups of channels that share offsets and masks; must divide `channels`.
        offset_scale: factor of the sampling grid and the offsets.
        act_layer: "GELU", "SiLU" or "ReLU".
        norm_layer: "LN" or "BN", after the depth-wise convolution.
        center_feature_scale: blend the result with the projected input by a learned factor per group.
        remove_center: leave the centre tap out; `kernel_size` must be odd.

    Raises:
        ValueError: for arguments that disagree, and in a call that does not keep the size.

    Example:
        >>> import torch
        >>> from hf_internimage.nn import DCNv3
        >>> layer = DCNv3(channels=32, group=2)
        >>> layer(torch.rand(1, 20, 24, 32)).shape
        torch.Size([1, 20, 24, 32])

    Source: OpenGVLab/InternImage@31c962d, classification/ops_dcnv3/modules/dcnv3.py.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        if channels % group:
            raise ValueError(f"channels is {channels}, expected a multiple of group={group}.")
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number with remove_center.")
        config = InternImageConfig(
            dw_kernel_size=kernel_size if dw_kernel_size is None else dw_kernel_size,
            offset_scale=offset_scale,
            act_layer=act_layer,
            norm_layer=norm_layer,
            center_feature_scale=bool(center_feature_scale),
            remove_center=bool(remove_center),
        )
        super().__init__(config, channels, group, kernel_size, stride, pad, dilation)
        for layer in (self.offset, self.mask):
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            init.xavier_uniform_(layer.weight)
            init.zeros_(layer.bias)


DCNv3_pytorch = DCNv3

__all__ = ["DCNv3", "DCNv3_pytorch"]
