# SPDX-License-Identifier: Apache-2.0
"""A page to try out trained models, several of them beside each other.

python scripts/demo.py runs/quickstart/model runs/quickstart/rnn/model
python scripts/demo.py runs/multi30k/model --write-space my_space    # the same page for a Space of the Hub
"""

import sys

from vanilla_transformer.demo.command import main

if __name__ == "__main__":
    sys.exit(main())
