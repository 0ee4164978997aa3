"""Train models: from scratch, by LoRA, as students of a run, or on sampled images."""
