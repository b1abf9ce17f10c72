"""What this machine lacks for what the deployment's settings ask: `hourllava doctor`."""
