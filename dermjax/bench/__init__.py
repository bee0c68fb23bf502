"""`dermjax bench`: how fast this machine does dermjax's work, beside PyTorch doing the same."""
