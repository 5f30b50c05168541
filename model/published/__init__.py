"""What leaves the learner: checkpoints as bytes, and the model that predicts from one."""
