# SPDX-License-Identifier: Apache-2.0
"""Decoding speed beside the baselines, in one process with the same weights."""
