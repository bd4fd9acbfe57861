"""One module per section of the paper: model and prompts in, a long-form frame out."""
