"""Steps that jobs are made of: sampling, pairs, training, evaluation, each resumable."""
