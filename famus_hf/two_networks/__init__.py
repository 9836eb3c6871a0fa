"""Two networks that divide the training set for each other (paper, section 5.3), with FaMUS inside."""
