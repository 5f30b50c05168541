"""The deep expert: embeddings, products of their pairs, and MLPs; the part of the model that is
pruned and regrown."""
