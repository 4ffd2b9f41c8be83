# SPDX-License-Identifier: Apache-2.0
"""Wrong usage that argparse cannot see."""


class UsageError(ValueError):
    """Arguments that do not go together; the command ends with status 2, as for argparse's own errors."""
