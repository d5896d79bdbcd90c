"""What computes: configuration, transformer, attention, LoRA, KV cache, scoring, weights in and out."""
