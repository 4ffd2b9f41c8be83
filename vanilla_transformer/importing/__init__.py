# SPDX-License-Identifier: Apache-2.0
"""Models of other toolkits as model folders of this package; a file for each toolkit holds its table of names."""
