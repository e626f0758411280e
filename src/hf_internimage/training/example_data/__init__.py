# SPDX-License-Identifier: MIT
"""Small data sets to try the trainings with: Fashion-MNIST, and scenes composed of its items or of digits."""
