"""Images to train on: manifests, samples, aligned pairs, shards, folds."""
