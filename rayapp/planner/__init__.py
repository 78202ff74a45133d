"""The heuristic planner: proposes how to train and serve from a survey of the data and of the machine."""

from rayapp.planner.machine import Gpu, Hardware, hardware
from rayapp.planner.proposal import KINDS, Kind, Method, Proposal, propose
from rayapp.planner.replicas import Plan, plan
from rayapp.planner.survey import Structure, Survey

__all__ = [
    "Gpu",
    "Hardware",
    "KINDS",
    "Kind",
    "Method",
    "Plan",
    "Proposal",
    "Structure",
    "Survey",
    "hardware",
    "plan",
    "propose",
]
