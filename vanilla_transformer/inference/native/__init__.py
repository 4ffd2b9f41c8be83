# SPDX-License-Identifier: Apache-2.0
"""Inference by C++ kernels, compiled on the machine that runs them."""
