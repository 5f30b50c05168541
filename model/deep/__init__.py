"""The deep expert: embeddings, dot products and MLPs; the part of the model that is pruned and
regrown."""
