# SPDX-License-Identifier: MIT
"""The pieces of benchmarks/benchmark.py: how to measure, what to measure, how to show it."""
