"""Distillation: how far a student's next-token distributions are from a teacher's, on given text.

On text of the teacher this is classical distillation (Hinton et al. 2015, arXiv 1503.02531; Kim and Rush 2016), on text
of the student itself on-policy distillation (Agarwal et al. 2023, arXiv 2306.13649, GKD): the loss is the same.
"""

from typing import Literal

from torch import Tensor

Kl = Literal["forward_kl", "reverse_kl"]
Divergence = Literal[Kl, "logprob"]
"""logprob: `squared_gap` of the target token alone."""


def divergence(kind: Kl, student: Tensor, teacher: Tensor) -> Tensor:
    """Nats [A], of log-probs [A, V]; or what V tokens, some of the vocabulary, add to it.

    forward_kl: KL(teacher || student), which covers all that the teacher would say (GKD with beta 0).
    reverse_kl: KL(student || teacher), which keeps to what it would say (GKD with beta 1; Gu et al. 2023, arXiv
    2306.08543).
    """
    if kind == "forward_kl":
        return (teacher.exp() * (teacher - student)).sum(-1)
    return (student.exp() * (student - teacher)).sum(-1)


def squared_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """(log student - log teacher)^2 / 2, nats^2, of log-probs of tokens, all [A].

    On the student's own samples its gradient is an unbiased estimate of that of KL(student || teacher), as that of k2
    is (Schulman 2020, "Approximating KL divergence"); only a teacher's log-probs of the tokens are needed.
    """
    return (student - teacher).square() / 2
