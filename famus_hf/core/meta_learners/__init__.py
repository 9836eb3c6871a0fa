"""Meta-learners Ψ(·; θ): what the training loss is as a function of a batch and θ, and how θ moves (torch only)."""
