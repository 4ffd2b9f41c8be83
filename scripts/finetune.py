# SPDX-License-Identifier: Apache-2.0
"""The twin of `vanilla-transformer finetune` for several processes.

accelerate launch --config_file configs/accelerate/ddp.yaml scripts/finetune.py configs/finetune.yaml
"""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
