"""Many runs that share stages: ways of training the same pruned network."""
