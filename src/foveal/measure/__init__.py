"""What models cost and how well they do: parameters, multiply-adds, time, memory, PSNR, SSIM."""
