# SPDX-License-Identifier: MIT
"""Trainings on two hosts with addresses of their own, on one Linux machine."""
