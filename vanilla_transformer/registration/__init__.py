# SPDX-License-Identifier: Apache-2.0
"""How the package registers its classes with transformers without importing it."""
