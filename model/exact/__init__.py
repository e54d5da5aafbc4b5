"""The exact arithmetic in numpy: the definition that a reader can follow, and the oracle of every engine (docs/arithmetic.md).

Every sum is a sum of integers, and every float operation acts on single elements, as IEEE 754 says: so no result depends on an order,
and any processor gives the same bits. ``arithmetic`` has the functions of one element, ``network`` the forward pass, ``generate`` the
text, ``probes`` and ``digests`` what an engine must equal before it serves. The sampler is `model.sampling`. No torch here.

    python -m model.exact CHECKPOINT --prompt "ROMEO:" --seed 1
"""
