"""From predictions to an exported ensemble; knows no Optuna and no search."""
