# SPDX-License-Identifier: Apache-2.0
"""Inference without PyTorch between the operations: the models' loops as machine code, compiled where they run."""
