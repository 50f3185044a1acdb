"""Single-file diffusers pipelines that travel with weights no stock class fits."""
