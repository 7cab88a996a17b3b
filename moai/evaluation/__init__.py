"""Evaluation: accuracies of answers, quality of verbalizers, sweeps over variants."""
