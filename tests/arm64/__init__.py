# SPDX-License-Identifier: MIT
"""The CPU kernels of arm64, on an emulated processor: `make check-arm64`."""
