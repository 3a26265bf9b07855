"""Reading: model and inputs -> fx graph -> attention and feed-forward sites -> row provenance -> Anatomy."""
