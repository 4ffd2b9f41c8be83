# SPDX-License-Identifier: Apache-2.0
"""The Transformer's inference by C++ kernels, compiled on the machine that runs them."""
