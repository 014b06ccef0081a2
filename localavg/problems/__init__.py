"""What is trained: a problem gives the loss and its gradient with respect to one row of the flat weight matrix."""
