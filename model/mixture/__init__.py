"""The linear expert: slots, evidence, forward pass, learning, and the check of old evidence."""
