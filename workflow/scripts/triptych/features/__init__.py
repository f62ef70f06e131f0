"""Vision features: computed once by the frozen encoder, stored in shards, read by image id."""
