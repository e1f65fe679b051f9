"""The parts of the GPU comparison: what each measures, in the terms of the published rows of vLLM beside them."""
