# SPDX-License-Identifier: MIT
"""One module a target, with `write(system, folder, options) -> file`, `load(file) -> Run` and `describe(file)`.

Those with 8 bits have `to_int8(file, pixels) -> file`, too.
"""
