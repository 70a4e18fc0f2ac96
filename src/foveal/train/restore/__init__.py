"""Training of networks of pictures: data, degradations, teachers, losses and recipes."""
