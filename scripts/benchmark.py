# SPDX-License-Identifier: Apache-2.0
"""How fast models decode, beside transformers and CTranslate2; and how exactly.

python scripts/benchmark.py decode
python scripts/benchmark.py decode configs/benchmark_decode.yaml "sizes=[small]" ctranslate2=false
python scripts/benchmark.py exact runs/my/model my.en
"""

import sys
from contextlib import suppress

# Before torch. Each brings an OpenMP of its own, and whichever is first loaded serves both: CTranslate2 finds torch's
# libgomp, whose barriers yield the processor once there are more OpenMP threads in the process than cores. Both are
# then several times slower. Not installed, it is no error here: a benchmark without it may be what is asked for.
with suppress(ModuleNotFoundError):
    import ctranslate2  # noqa: F401 -- see above

from vanilla_transformer.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
