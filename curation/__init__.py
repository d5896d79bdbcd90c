"""How data is chosen: stages from rows to rows and dropped rows, run by a recipe, with nothing lost unseen."""
