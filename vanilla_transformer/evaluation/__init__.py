# SPDX-License-Identifier: Apache-2.0
"""Translating with a model, and scoring translations."""
