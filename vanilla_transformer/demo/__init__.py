# SPDX-License-Identifier: Apache-2.0
"""A page to play with trained models: translations with scores, and the attention."""
