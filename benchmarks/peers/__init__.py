"""The benchmark's predictor as users of other servers would serve it: each file runs in a process of its own."""
