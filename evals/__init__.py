"""How a model is judged: tasks, graders, statistics and tables."""
