"""GenEval: does a picture hold the objects a prompt names, in number, colour and place?

``rules`` decides on boxes, ``task`` is what is asked for, ``reward`` puts both behind the reward
protocol, ``mask2former`` finds objects, ``colours`` names their colours, and ``load`` puts it all
together from files.

References:
    GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment (Ghosh et al.,
    2023), arXiv 2310.11513.
"""

from .reward import GenevalReward
from .rules import Detection, Verdict, judge
from .task import Task, read_task

__all__ = ["Detection", "GenevalReward", "Task", "Verdict", "judge", "read_task"]
