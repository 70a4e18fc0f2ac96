"""Training: the loop, objectives, optimisers and run folders; `restore` trains super-resolution and denoising."""
