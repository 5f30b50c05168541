"""The bodies of requests and answers: JSON, tensors, Arrow."""
