# SPDX-License-Identifier: MIT
"""A folder of `hf-internimage export --target web` in Node and Chromium: `make check-web`."""
