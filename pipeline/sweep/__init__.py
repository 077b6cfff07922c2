"""Ablation sweeps: many trainings from one recipe, run by Ray Tune and compared in MLflow."""
