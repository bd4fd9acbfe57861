"""The shipped toy model, its synthetic language, and the training that made it (README.md in this folder)."""
