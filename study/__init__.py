"""Many runs and the documents about them. Nobody needs this to train or to predict."""

import experiment  # noqa: F401  before torch, as it says
