"""What is known of a file before Lean sees it: tokens, the gate, the reconstruction, the names in it."""
