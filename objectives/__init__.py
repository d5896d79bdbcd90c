"""What is minimised: pure functions from scores and a batch to a Loss, one file each."""
