"""How the gradients of a rank's learners are computed."""
