"""How the next token is chosen: shape the logits, cut the ranking, draw, and report log probabilities."""
