"""Text to ids and back, one file per kind of vocabulary, all with the same methods.

    encode(text) -> ids         no BOS, no EOS; a special token's name in the text is plain text
    encode(text, after=id)      the same, where the text goes on after that token
    wrap(ids, other) -> ids, token types    with the special tokens that the model expects
    decode(ids) -> text         decode_bytes(ids), token_bytes(id)
    chat(messages) -> ids, mask mask 1 = a token to be learned
    vocab_size, eos, bos, pad, add_bos, special, template, files()

Read `split.py` (text to words), `byte_bpe.py` (words to ids), `chat.py` (messages to ids),
`wordpiece.py` (the encoders' way), `sentencepiece.py` (spaces are characters of the pieces),
`wrapping.py` (what stands around a text). A chat template is text in Jinja, which `jinja/`
renders; `chat_templates.py` has those with a name. The file formats are `vocabulary.py`,
`tokenizer_json.py`, `wordpiece_json.py`, `post_processor.py`, and of pieces `piece_model.py`,
`piece_settings.py` and `piece_json.py`, with their merges in `piece_merges.py`; `beside.py` is what
stands beside a vocabulary in a folder, and `tokenizer_class.py` what transformers makes of it all.
"""
