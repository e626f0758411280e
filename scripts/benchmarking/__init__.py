# SPDX-License-Identifier: MIT
"""The pieces of scripts/benchmark.py: how to measure, what to measure, how to show it."""
