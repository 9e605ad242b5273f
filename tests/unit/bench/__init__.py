"""What the benches decide, without running them."""
