# SPDX-License-Identifier: Apache-2.0
"""The twin of `vanilla-transformer push`.

python scripts/push_to_hub.py runs/multi30k/model user/name --dry-run
python scripts/push_to_hub.py runs/multi30k/model user/name --private    # after `hf auth login`
"""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
