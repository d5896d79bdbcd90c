"""What a person looks at: pages and tables made of files that a run or a recipe left; nothing here trains."""
