"""One file per operation: derivation, forward, backward, and the public function."""
