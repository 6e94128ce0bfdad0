"""The learner: turns finished, scored rollouts into policy updates.

Everything here except the actor's own files is pure: tensors and plain values in, tensors and plain values
out; no sockets, no messages, no clocks.
"""
