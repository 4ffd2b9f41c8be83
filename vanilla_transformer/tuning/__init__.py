# SPDX-License-Identifier: Apache-2.0
"""Sweeps: settings of runs, found by successive halving on validation data."""
