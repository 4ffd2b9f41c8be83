# SPDX-License-Identifier: Apache-2.0
"""Using a trained model: opening its folder, batching lines, and decoding them."""
