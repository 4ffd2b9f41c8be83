# SPDX-License-Identifier: Apache-2.0
"""`python -m vanilla_transformer.cli` is the command `vanilla-transformer`."""

import sys

from vanilla_transformer.cli import main

sys.exit(main())
