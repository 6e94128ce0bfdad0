"""The learning mathematics: pure functions of tensors, without sockets, configuration or logging.

recurrence   y_t = b_t + a_t y_{t+1}, the one scan behind every estimator
steps        what an estimator reads: rewards, values, ends, log-ratios, along time
estimators   GAE, TD(lambda), V-trace, Retrace, clipped IS, n-step, REINFORCE
tokens       token sequences (padded or packed, with tool tokens) to steps and back
segments     turns or whole sequences as single steps; the dead band of ratios
unified      `compute_advantages_unified`, one call for all of them
"""
