"""Attribution methods, and tests for them."""
