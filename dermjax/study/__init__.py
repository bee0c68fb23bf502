"""The paper's question as an experiment: arms x classifiers x seeds x few-shot sizes x folds, judged together."""
