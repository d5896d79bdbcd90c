"""How an episode is graded: one file a grader, their contract, their names, and the scoring of a batch."""
