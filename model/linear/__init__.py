"""The linear expert: Bayesian logistic regression over slots, at several time scales."""
