"""What faster-pruner can do, one verb per file: prune, cut, evaluate, export, bench, demo, vocabulary."""
