"""From batches to models: where data, model, Ray Train and MLflow meet."""
