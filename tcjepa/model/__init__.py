"""TC-JEPA: encoder, text-conditioned predictor, losses."""
