"""Training of picture networks: data, degradations, teachers, losses and recipes."""
