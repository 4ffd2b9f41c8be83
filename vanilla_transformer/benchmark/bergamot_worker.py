# SPDX-License-Identifier: Apache-2.0
"""Translates by PyPI's bergamot: JSON strings on stdin and stdout, one a line.

It runs in a Python of its own, 3.8 to 3.10: bergamot has wheels up to 3.10.
"""

import json
import sys
from importlib.util import find_spec


def main(config: str, threads: str) -> None:
    """Answer each line of stdin until it is closed.

    Args:
        config: bergamot's YAML.
        threads: for as many batches at once.
    """
    package = find_spec("bergamot")
    if package is None:
        sys.exit(f"bergamot is not installed: {sys.executable} -m pip install bergamot")
    sys.path += package.submodule_search_locations or ()  # importing the package itself asks two hosts for their models
    from _bergamot import (  # pyright: ignore[reportMissingImports] -- not in this project's environment
        ResponseOptions,
        Service,
        ServiceConfig,
        VectorString,
    )

    service = Service(ServiceConfig(numWorkers=int(threads)))
    model, options = service.modelFromConfig(config), ResponseOptions(qualityScores=False, sentenceMappings=False)
    for line in sys.stdin:
        [response] = service.translate(model, VectorString([json.loads(line)]), options)
        print(json.dumps(response.target.text), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
