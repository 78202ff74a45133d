"""The heuristic planner: from what the data look like and what the machine has to what to do with both."""

from rayapp.planner.machine import Gpu, Hardware, hardware
from rayapp.planner.proposal import METHODS, Kind, Proposal, propose
from rayapp.planner.replicas import Plan, plan
from rayapp.planner.survey import Structure, Survey

__all__ = [
    "Gpu",
    "Hardware",
    "METHODS",
    "Kind",
    "Plan",
    "Proposal",
    "Structure",
    "Survey",
    "hardware",
    "plan",
    "propose",
]
