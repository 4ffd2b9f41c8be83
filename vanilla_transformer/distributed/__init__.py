# SPDX-License-Identifier: Apache-2.0
"""Several processes: process groups, FSDP2 and ZeRO."""
