"""Training: the loop, objectives, optimisers and the folder of a run; `restore` trains networks of pictures."""
