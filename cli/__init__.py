"""What scripts share: flags, recipes, one-line errors, set-up."""
