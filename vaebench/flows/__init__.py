"""Flows: invertible maps that are moved through and scored in one pass, conditioned on an image."""

from collections.abc import Callable

from vaebench.flows.flow import Conditioned, Flow, Moved, Place
from vaebench.flows.householder import HouseholderFlow
from vaebench.flows.iaf import IAFFlow
from vaebench.flows.nsf import SplineFlow
from vaebench.flows.planar import PlanarFlow
from vaebench.flows.radial import RadialFlow
from vaebench.flows.realnvp import RealNVPFlow
from vaebench.flows.sylvester import SylvesterFlow

__all__ = [
    "FLOWS",
    "Conditioned",
    "Flow",
    "HouseholderFlow",
    "IAFFlow",
    "Moved",
    "Place",
    "PlanarFlow",
    "RadialFlow",
    "RealNVPFlow",
    "SplineFlow",
    "SylvesterFlow",
]

FLOWS: dict[str, Callable[..., Flow]] = {
    "householder": HouseholderFlow.build,
    "iaf": IAFFlow.build,
    "nsf": SplineFlow.build,
    "planar": PlanarFlow.build,
    "radial": RadialFlow.build,
    "realnvp": RealNVPFlow.build,
    "sylvester": SylvesterFlow.build,
}
"""How to make a step of each family at a Place, from the settings in the family's yaml."""
