"""Where each token of a batch stands and what is read from it, in upstream's layout and in ours."""
