"""Step distillation of diffusion and flow models, measured."""
