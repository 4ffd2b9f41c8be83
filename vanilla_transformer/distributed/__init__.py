# SPDX-License-Identifier: Apache-2.0
"""Processes that share the work: their groups, FSDP2 and ZeRO."""
