# SPDX-License-Identifier: Apache-2.0
"""What all programs of this package have in common at a terminal: arguments, streams, errors, outputs."""
