"""Cost and quality of models: parameters, multiply-adds, time, memory, PSNR, SSIM."""
