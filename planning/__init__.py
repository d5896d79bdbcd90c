"""What a run will take: its step compiled for devices that are not there."""
