# SPDX-License-Identifier: Apache-2.0
"""The terminal side of all programs of this package: arguments, streams, errors, outputs."""
