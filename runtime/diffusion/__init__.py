"""Frames <-> frames: latents, noise, the denoising loop. Knows no files."""
