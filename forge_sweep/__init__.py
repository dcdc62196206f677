"""Hyperparameter sweeps for Keras: one TOML file in, one registered model out.

Importing this package is cheap: TensorFlow, MLflow and Optuna are imported by the functions that need them.
"""

__version__ = "0.1.0"
