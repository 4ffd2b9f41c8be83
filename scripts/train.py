# SPDX-License-Identifier: Apache-2.0
"""The twin of `vanilla-transformer train` for `accelerate launch`.

accelerate launch scripts/train.py configs/multi30k.yaml
accelerate launch --num_processes 2 --cpu scripts/train.py configs/multi30k.yaml training.max_minutes=10
"""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
