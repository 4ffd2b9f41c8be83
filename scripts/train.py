# SPDX-License-Identifier: Apache-2.0
"""The twin of `vanilla-transformer train` for several processes.

accelerate launch scripts/train.py configs/multi30k.yaml
torchrun --nproc_per_node 2 scripts/train.py configs/multi30k.yaml training.max_minutes=10    # on CPUs too
"""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
