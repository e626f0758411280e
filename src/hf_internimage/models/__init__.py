# SPDX-License-Identifier: MIT
"""Configurations, models and image processors, in one flat folder: these files travel to the Hub side by side."""
