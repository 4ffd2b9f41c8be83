# SPDX-License-Identifier: Apache-2.0
"""Speed of decoding and of training beside the baselines, in one process."""
