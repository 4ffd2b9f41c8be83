# SPDX-License-Identifier: Apache-2.0
"""Align the words of given translations, or choose the attention heads that align best.

    vanilla-transformer align runs/multi30k/model --source test.en --target test.de > test.align
    vanilla-transformer align runs/multi30k/model --source dev.en --target dev.de --reference dev.align --choose
    vanilla-transformer align runs/multi30k/model --source test.en --target test.de --reference test.align

Alignments are in Pharaoh's format, "0-0 1-2 …", source word and target word, counted from 0; in a reference, "1p2" is
possible, but not sure. With --reference it prints the alignment error rate instead. --choose scores every head of every
decoder layer and the mean of each layer, and writes the best to generation_config.json, where `translate --alignments`
finds it.
"""

import argparse
import sys

from vanilla_transformer.cli.decoding_options import open_translator
from vanilla_transformer.console.arguments import UsageError

EXTRA, NEEDS = None, ()
SHOWN = 10  # candidates of --choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id; with --choose a folder")
    parser.add_argument("--source", required=True, help="text file")
    parser.add_argument("--target", required=True, help="its translations")
    parser.add_argument("--reference", metavar="FILE", help="alignments to score those of the model against")
    parser.add_argument("--choose", action="store_true", help="write the heads with the lowest error to the model")
    parser.add_argument("--target-language", metavar="L", help="of a model of several, as for translate")
    parser.add_argument("--tag", metavar="TAG", help="a tag before every source, as for translate")


def run(arguments: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from vanilla_transformer.console.outputs import write_atomically
    from vanilla_transformer.data.alignment import format_alignment, parse_alignment
    from vanilla_transformer.data.corpus import read_aligned
    from vanilla_transformer.evaluation.alignment_error_rate import score_alignment_heads, score_alignments
    from vanilla_transformer.inference.alignment import HEADS, SHIFT

    if arguments.choose and arguments.reference is None:
        raise UsageError("--choose needs --reference, alignments of the pairs")
    settings = Path(arguments.model, "generation_config.json")
    if arguments.choose and not settings.is_file():
        raise FileNotFoundError(f"--choose writes to {settings}, which does not exist; give a model folder")
    rows = list(read_aligned(arguments.source, arguments.target, arguments.reference))
    if not rows:
        raise ValueError(f"{arguments.source} and {arguments.target} are empty: nothing to align")
    sources, targets = ([row[side] for row in rows] for side in ("source", "target"))
    references = [parse_alignment(row["alignments"], row["source"], row["target"]) for row in rows if len(row) > 2]
    translator = open_translator(arguments.model, engine="torch")
    options = {"tag": arguments.tag, "target_language": arguments.target_language}
    if not arguments.choose:
        found = translator.align(sources, targets, **options)
        if arguments.reference is None:
            sys.stdout.buffer.write("".join(f"{format_alignment(links)}\n" for links in found).encode())
            return 0
        score = score_alignments(found, references)
        rates = f"precision {score.precision:.1%}, recall {score.recall:.1%}"
        print(f"alignment error rate {score.error_rate:.1%} ({rates}, {len(rows):,} pairs)")
        return 0
    pairs = list(zip(sources, targets, references, strict=True))
    ranked = score_alignment_heads(translator.model, translator.tokenizer, pairs, **options)
    print("error rate  precision  recall  layer  heads  shift")
    for candidate, score in ranked[:SHOWN]:
        layer, heads = candidate.heads[0][0], ",".join(str(head) for _, head in candidate.heads)
        rates = f"{score.error_rate:10.1%} {score.precision:10.1%} {score.recall:7.1%}"
        print(f"{rates}  {layer:5}  {heads:5}  {candidate.shift:5}")
    best = ranked[0][0]
    values = json.loads(settings.read_text(encoding="utf-8")) | {HEADS: best.heads, SHIFT: best.shift}
    values.pop("_from_model_config", None)  # with this mark, transformers ignores fields that it does not know
    write_atomically(settings, json.dumps(values, indent=2, sort_keys=True) + "\n")
    print(f"{settings}: {HEADS}={json.dumps(best.heads)}, {SHIFT}={best.shift}")
    return 0
