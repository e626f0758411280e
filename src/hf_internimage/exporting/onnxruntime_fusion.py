# SPDX-License-Identifier: MIT
"""Put depth-wise convolution, LayerNorm and GELU of an ONNX program into one operator of the CPU library."""

from typing import Any

from onnxscript.rewriter import pattern, rewrite

from .onnxruntime_operators import DOMAIN


class _DepthwiseNormGelu(pattern.RewriteRuleClassBase):
    """Transpose, depth-wise Conv, Transpose, LayerNormalization, Gelu: what precedes the offsets in InternImage."""

    def pattern(self, op: Any, states: Any, weight: Any, bias: Any, gamma: Any, beta: Any) -> Any:
        images = op.Transpose(states, perm=[0, 3, 1, 2])
        images = op.Conv(images, weight, bias, _allow_other_attributes=True, _outputs=["convolved"])
        convolved = op.Transpose(images, perm=[0, 2, 3, 1])
        normalized = op.LayerNormalization(
            convolved, gamma, beta, axis=-1, _allow_other_attributes=True, _outputs=["normalized"]
        )
        return op.Gelu(normalized, approximate="none")

    def check(self, context: Any, weight: Any, convolved: Any, **_: Any) -> bool:  # type: ignore[override]
        """Return True for what the operator computes: a square kernel of odd side, and as many pixels as before."""
        if weight.shape is None or not weight.shape.is_static():
            return False
        channels, inputs, height, width = weight.shape.numpy()
        expected = {"group": channels, "strides": [1, 1], "dilations": [1, 1], "pads": [width // 2] * 4}
        attributes = convolved.producer().attributes
        return (
            (inputs, height, width % 2) == (1, width, 1)
            and all(name in attributes and _plain(attributes[name].value) == value for name, value in expected.items())
            and ("auto_pad" not in attributes or attributes["auto_pad"].as_string() == "NOTSET")
        )

    def rewrite(
        self, op: Any, states: Any, weight: Any, bias: Any, gamma: Any, beta: Any, normalized: Any, **_: Any
    ) -> Any:
        epsilon = normalized.producer().attributes["epsilon"].as_float()
        return op.DepthwiseNormGelu(states, weight, bias, gamma, beta, epsilon=epsilon, _domain=DOMAIN, _version=1)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else list(value)


def fuse(program: Any) -> None:
    """Change a `torch.onnx.ONNXProgram` in place."""
    program.model = rewrite(program.model, [_DepthwiseNormGelu.rule()])


__all__ = ["fuse"]
