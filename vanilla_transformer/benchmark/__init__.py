# SPDX-License-Identifier: Apache-2.0
"""Speed beside the peers, in one process with the same weights."""
