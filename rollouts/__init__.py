"""How completions are sampled, and made into batches."""
