# SPDX-License-Identifier: Apache-2.0
"""Raw parallel text into corpora that are ready to train on: filters, duplicates, report."""
