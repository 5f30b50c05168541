"""What is learned: features, embedding tables, the network, the learner, its evaluation and its
checkpoint. Pure, like `pruning`."""
