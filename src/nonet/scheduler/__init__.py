"""Who runs in a step, and how many tokens of each; torch-free."""
