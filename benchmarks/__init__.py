"""Side by side against torch.nn, in one process; prints ratios, asserts nothing."""
