# SPDX-License-Identifier: Apache-2.0
"""Section 5 of the paper: configuration, schedule, the training loop, checkpoints and their average."""
