"""What an answer is worth: rewards as functions, by name, and their scores, bounded in time."""
