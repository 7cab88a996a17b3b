"""The pipeline: images and questions in, verbalizers and the model run together, answers out."""
