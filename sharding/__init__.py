"""Where it lives: the mesh, and the one table from logical axis to mesh axis."""
