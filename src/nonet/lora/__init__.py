"""Many low-rank adapters over one base model (LoRA, arXiv 2106.09685), each sequence with its own."""
