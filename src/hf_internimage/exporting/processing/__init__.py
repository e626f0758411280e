# SPDX-License-Identifier: MIT
"""Pre- and post-processing as a part of ONNX files."""
