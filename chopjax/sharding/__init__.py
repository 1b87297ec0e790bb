"""Where arrays lie on a mesh, derived from the names of their axes."""
