"""The real programs that tests run against: how they get here, and how they are started and stopped."""
