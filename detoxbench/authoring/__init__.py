"""For authors of methods, suites and scorers: packages to begin with, and what a method must keep, checked."""
