# SPDX-License-Identifier: MIT
"""Modules of the benchmark programs: how to measure, what to measure, how to report it."""
