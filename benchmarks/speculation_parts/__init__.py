"""The parts of the speculation benchmark: its prompts, its engines, how two are compared, and the replayed pair."""
