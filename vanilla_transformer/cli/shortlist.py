# SPDX-License-Identifier: Apache-2.0
"""Make the lexical table of `translate --shortlist` from aligned text.

    vanilla-transformer shortlist runs/multi30k/model --source train.en --target train.de \\
        --alignments train.align --output lex.txt
    vanilla-transformer translate runs/multi30k/model --shortlist lex.txt < test.en > test.hyp

The alignments are an aligner's, of words that white space separates, in Pharaoh's format. The table has the model's
tokens, a line for each pair, "target source probability", as Marian reads it; at most 100 for each source token.
"""

import argparse

EXTRA, NEEDS = None, ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id, for its tokenizer")
    parser.add_argument("--source", required=True, help="text file")
    parser.add_argument("--target", required=True, help="its translations")
    parser.add_argument("--alignments", required=True, metavar="FILE", help="'0-0 1-2 ...', a line for each pair")
    parser.add_argument("--output", required=True, metavar="FILE", help="the table, plain or .gz")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from vanilla_transformer.console.outputs import check_output_file, write_atomically
    from vanilla_transformer.data.corpus import read_aligned
    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.inference.shortlist import lexical_table

    check_output_file(arguments.output, "--output")
    rows = read_aligned(arguments.source, arguments.target, arguments.alignments)
    table = list(lexical_table(rows, load_tokenizer(arguments.model)))
    if not table:
        raise ValueError(f"{arguments.alignments} has no link: a table needs aligned words")
    write_atomically(Path(arguments.output), "".join(f"{target} {source} {p:.6g}\n" for target, source, p in table))
    print(f"{arguments.output}: {len(table):,} pairs of tokens")
    return 0
