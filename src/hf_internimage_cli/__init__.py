# SPDX-License-Identifier: MIT
"""The command line `hf-internimage`.

This package imports the standard library alone, and the library `hf_internimage` when a command runs: help and mistakes
on the command line are answered before torch is imported.
"""
