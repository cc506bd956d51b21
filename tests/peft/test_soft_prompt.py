"""Virtual tokens before a text: masks, token types, embeddings given, what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.generation.cache import KVCache
from minift.generation.decode import decode
from minift.kernels.attention.packed import PackedSequences
from minift.peft.methods import attach
from minift.peft.prompt import Prompt

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = torch.arange(14).view(2, 7)
IDS = (9, 4, 7)


def adapted(name="llama_gqa"):
    return attach(load_model(GOLDEN / name, dtype=torch.float64), Prompt(3, "text", IDS)).eval()


def test_embeddings_may_be_given_in_place_of_tokens():
    model = adapted()
    assert torch.equal(model(embeds=model.embed_tokens(TOKENS)), model(TOKENS))


def test_an_encoder_reads_them_before_the_first_token_and_as_the_first_type():
    """Its label head reads the first position, which is virtual then, as PEFT's does."""
    model = adapted("families/bert_labels")
    plain = load_model(GOLDEN / "families/bert_labels", dtype=torch.float64).eval()
    types = torch.ones_like(TOKENS)
    types[:, :3] = 0
    longer = torch.cat((torch.tensor([IDS, IDS]), TOKENS), dim=1)
    longer_types = torch.cat((torch.zeros(2, 3, dtype=torch.long), types), dim=1)
    got = model(TOKENS, token_types=types)
    expected = plain(longer, token_types=longer_types)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_in_packed_rows_they_stand_before_every_text():
    """Token types too: as if each text were a row of its own."""
    model = adapted("families/bert_labels")
    types = torch.ones_like(TOKENS)
    types[:, :3] = 0
    segments = torch.tensor([[4, 4, 4, 4, 4, 4, 4], [1, 1, 3, 3, 3, 3, 3]])
    mask = torch.ones_like(TOKENS, dtype=torch.bool)
    mask[1, 6:] = False
    packed = model(TOKENS, token_types=types, segments=segments, mask=mask, hidden_only=True)
    for row, first, last in ((0, 0, 7), (1, 0, 2), (1, 2, 6)):
        at = slice(first, last)
        alone = model(
            TOKENS[row : row + 1, at], token_types=types[row : row + 1, at], hidden_only=True
        )
        torch.testing.assert_close(packed[row, at], alone[0], rtol=0, atol=1e-12)


def test_decoding_goes_on_after_them():
    model, plain = adapted(), load_model(GOLDEN / "llama_gqa", dtype=torch.float64).eval()
    prompts = [[5, 9, 2], [1], [30, 2]]
    found = decode(model, prompts, max_new_tokens=6)
    assert found == decode(plain, [[*IDS, *ids] for ids in prompts], max_new_tokens=6)


def test_what_does_not_go_together_is_refused():
    model = adapted()
    with pytest.raises(ConfigError, match="positions and virtual tokens"):
        model(TOKENS, positions=torch.zeros_like(TOKENS))
    cache = KVCache(model.config, 2, 10, dtype=torch.float64)
    with pytest.raises(ConfigError, match="segments and a cache"):
        model(TOKENS, segments=torch.zeros_like(TOKENS), cache=cache)
    with pytest.raises(ConfigError, match="3 virtual tokens and 126 tokens exceed"):
        model(torch.zeros(1, 126, dtype=torch.long))


@pytest.mark.parametrize("given", [
    {"mask": torch.arange(14).view(2, 7) != 7},
    {"segments": torch.tensor([[4, 4, 4, 4, 4, 4, 4], [1, 1, 3, 3, 3, 3, 3]])},
], ids=list)  # fmt: skip
def test_positions_may_be_selected_by_index(given):
    model, indices = adapted(), torch.tensor([12, 0, 6, 9])
    expected = model(TOKENS, **given).flatten(0, 1)[indices]
    found = model(TOKENS, selected=indices, **given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_row_whose_sequences_only_the_device_knows_is_refused():
    packed = PackedSequences(torch.zeros(1, 7, dtype=torch.long), torch.tensor([0, 7]).int(), 7)
    with pytest.raises(ConfigError, match="PackedSequences and virtual tokens do not go together"):
        adapted()(TOKENS[:1], segments=packed)
