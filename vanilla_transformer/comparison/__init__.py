# SPDX-License-Identifier: Apache-2.0
"""The Transformer against the recurrent models that it replaced: speed, long range, quality."""
