"""The worker's side of the ledger's lease protocol, shared by rollouts, reward servers and the learner."""
