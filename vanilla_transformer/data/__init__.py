# SPDX-License-Identifier: Apache-2.0
"""Corpora, tokenizer and batches: from parallel text to tensors."""
