"""Which tokens' KV is already computed, whoever computed it."""
