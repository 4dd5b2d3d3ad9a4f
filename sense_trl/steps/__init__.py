"""What jobs are made of: sampling, pairs, training, evaluation, each resumable."""
