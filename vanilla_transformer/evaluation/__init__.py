# SPDX-License-Identifier: Apache-2.0
"""BLEU, error rates and attention weights of a model's translations."""
