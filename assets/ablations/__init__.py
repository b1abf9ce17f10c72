"""The paper's ablations: arms that are trained and scored as the stages are, in one table."""
