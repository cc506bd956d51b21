"""WordPiece ids and decoded texts of a file of texts by the tokenizers library.

    python benchmarks/peers/wordpiece_parity.py TOKENIZER.json TEXTS.jsonl OUT.json

Without special tokens, truncation and padding.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.no_truncation()
tokenizer.no_padding()
texts = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
rows = [row.ids for row in tokenizer.encode_batch(texts, add_special_tokens=False)]
decoded = [tokenizer.decode(ids) for ids in rows]
Path(sys.argv[3]).write_text(json.dumps({"ids": rows, "decoded": decoded}))
