# SPDX-License-Identifier: Apache-2.0
"""Opening a trained model's folder, batching lines, and decoding them."""
