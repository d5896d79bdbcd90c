"""How it speaks: the sampler."""
