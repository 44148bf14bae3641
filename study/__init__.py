"""Many runs and the documents about them. Nobody needs this to train or to predict."""
