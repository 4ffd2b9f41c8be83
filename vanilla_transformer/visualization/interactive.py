# SPDX-License-Identifier: Apache-2.0
"""bertviz's views of attention as one HTML file that loads nothing: its scripts are inside."""

import re
from collections.abc import Sequence
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch  # bertviz takes its tensors

from vanilla_transformer.visualization.layer_attention import KIND_NAMES, KINDS, AttentionWeights, Kind

View = Literal["head", "model"]
# The scripts that bertviz would download: package, file in it.
SCRIPTS = [("mpld3", "mpld3/js/d3.v5.min.js"), ("xstatic-jquery", "xstatic/pkg/jquery/data/jquery.min.js")]
# Replaces require.js, which would load both.
REQUIRE = "const requirejs = (names, run) => run(window.jQuery, window.d3);"
DOWNLOADS = (r'<script src="[^"]*require[^"]*"></script>', r"require\.config\(\{.*?\}\s*\}\);")
LESS_THAN, LESS_THAN_IN_JSON = "\ue000", "\\ue000"  # stands for "<" while bertviz writes the tokens into a script
DECIMALS = 4  # of a weight in the file

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>body {{ font-family: sans-serif; margin: 2em; }}</style>
{scripts}
</head>
<body>
<h1>{title}</h1>
<p>{help}</p>
{views}
</body>
</html>
"""
HELP = {
    "head": "Left: the tokens that attend; right: those attended to. Point at a token to see its lines alone; "
    "double-click a colour to see its head alone. Layers are counted from 0.",
    "model": "A row for each layer, a column for each head, both counted from 0. Click one to enlarge it.",
}


def interactive_page(attention: AttentionWeights, view: View, kinds: Sequence[Kind] = KINDS, title: str = "") -> str:
    """An HTML page with a view for each kind of attention that the model has.

    Args:
        view: "head": one layer at a time, all heads; "model": all layers and heads, small.

    Raises:
        ValueError: this version of bertviz loads its scripts in another way.
    """
    present: list[Kind] = [kind for kind in kinds if getattr(attention, kind) is not None]
    scripts = [_read_script(*script) for script in SCRIPTS] + [REQUIRE]
    return PAGE.format(
        title=escape(title or "Attention"),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
        help=HELP[view],
        views="\n".join(f"<h2>{KIND_NAMES[kind]}</h2>\n{_view(attention, kind, view)}" for kind in present),
    )


def _view(attention: AttentionWeights, kind: Kind, view: View) -> str:
    from bertviz import head_view, model_view

    weights = np.round(getattr(attention, kind).astype(np.float64), DECIMALS)  # (layers, heads, queries, keys)
    queries, keys = attention.queries_and_keys(kind)
    draw: Any = head_view if view == "head" else model_view
    # Every kind is passed as cross-attention, the only one whose two sides may differ.
    html = draw(
        cross_attention=[torch.from_numpy(layer[None]) for layer in weights],
        encoder_tokens=[token.replace("<", LESS_THAN) for token in keys],
        decoder_tokens=[token.replace("<", LESS_THAN) for token in queries],
        prettify_tokens=False,
        html_action="return",
        **({} if view == "head" else {"display_mode": "light"}),
    ).data.replace(LESS_THAN_IN_JSON, "\\u003c")
    for pattern in DOWNLOADS:
        html, count = re.subn(pattern, "", html, flags=re.DOTALL)
        if count != 1:
            raise ValueError(
                f"bertviz {distribution('bertviz').version} does not load its scripts as 1.4.1 does: install that one"
            )
    return html


def _read_script(package: str, file: str) -> str:
    """The text of a script in an installed package, which is not imported."""
    return Path(str(distribution(package).locate_file(file))).read_text("utf-8").replace("</script", "<\\/script")
