"""What is fed: records -> chat template -> tokens and masks -> packed batches."""
