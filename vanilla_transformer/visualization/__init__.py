# SPDX-License-Identifier: Apache-2.0
"""Plots of results that were measured elsewhere: plain dicts in, figures out."""
