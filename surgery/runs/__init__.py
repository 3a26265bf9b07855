"""From data to a run folder: one YAML file says what is trained, on what, and where the results go."""
