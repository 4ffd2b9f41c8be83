# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: the speed of decoding and of training beside other implementations, and the exactness of decoding.

python scripts/benchmark.py decode
python scripts/benchmark.py decode configs/benchmark_decode.yaml "sizes=[small]" ctranslate2=false
python scripts/benchmark.py train "sizes=[base]" "lengths=[24]"
python scripts/benchmark.py train configs/benchmark_train_gpu.yaml
python scripts/benchmark.py exact runs/my/model my.en
"""

import sys
from contextlib import suppress

# CTranslate2 before torch: each brings its own OpenMP, and the first one loaded serves both. The barriers of torch's
# libgomp yield the processor once the process has more OpenMP threads than cores: both are then several times slower.
# CTranslate2 may be missing: a benchmark can leave it out. Training goes without it, by torch's own OpenMP.
if sys.argv[1:2] != ["train"]:
    with suppress(ModuleNotFoundError):
        import ctranslate2  # noqa: F401 -- see above

from vanilla_transformer.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
