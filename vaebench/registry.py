"""The names of encoders, flows, priors, likelihoods, objectives and estimators.

A yaml's ``name`` is a key of one of these tables, or a name of a plug-in. The other keys of the yaml are keyword
arguments of the entry. A new family needs one line here. The first call of an entry imports it, so that a run imports
no other family.
"""

import math
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch

from vaebench import bounds, plugins
from vaebench.encoders.base import Encoder
from vaebench.errors import UserError, did_you_mean
from vaebench.nets.dense import Likelihood
from vaebench.objective import Objective
from vaebench.priors import Prior

__all__ = ["ENCODERS", "ESTIMATORS", "FLOWS", "LIKELIHOODS", "OBJECTIVES", "PRIORS", "Lazy", "registered"]


class Lazy:
    """A function of the package that its first call imports.

    Args:
        target: module and name without ``vaebench.``, as in ``"encoders.gaussian:GaussianEncoder.build"``.
        arguments: keyword arguments of every call.
    """

    def __init__(self, target: str, **arguments: Any) -> None:
        self.target = f"vaebench.{target}"
        self.arguments = arguments

    def __call__(self, *given: Any, **arguments: Any) -> Any:
        """Call the function."""
        return resolve_name(self.target)(*given, **self.arguments, **arguments)


FLOWS: dict[str, Callable[..., Any]] = {
    "householder": Lazy("flows.householder:HouseholderFlow.build"),
    "iaf": Lazy("flows.iaf:IAFFlow.build"),
    "nsf": Lazy("flows.nsf:SplineFlow.build"),
    "planar": Lazy("flows.planar:PlanarFlow.build"),
    "radial": Lazy("flows.radial:RadialFlow.build"),
    "realnvp": Lazy("flows.realnvp:RealNVPFlow.build"),
    "sylvester": Lazy("flows.sylvester:SylvesterFlow.build"),
}
"""(context, **settings) -> one step of a flow."""

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "adgm": Lazy("encoders.hierarchical:HierarchicalEncoder.build", learned_reverse=True),
    "avb": Lazy("encoders.adversarial:AdversarialEncoder.build", adaptive_contrast=False),
    "avb_ac": Lazy("encoders.adversarial:AdversarialEncoder.build", adaptive_contrast=True),
    "full_gaussian": Lazy("encoders.full_gaussian:FullGaussianEncoder.build"),
    "gaussian": Lazy("encoders.gaussian:GaussianEncoder.build"),
    "hvae": Lazy("encoders.hamiltonian:HamiltonianEncoder.build"),
    "hvm": Lazy("encoders.hierarchical:HierarchicalEncoder.build", learned_reverse=True),
    "iwhvi": Lazy("encoders.hierarchical:HierarchicalEncoder.build", learned_reverse=True),
    "ladder": Lazy("encoders.two_layers:LadderEncoder.build"),
    "langevin": Lazy("encoders.langevin:LangevinEncoder.build"),
    "sivi": Lazy("encoders.hierarchical:HierarchicalEncoder.build", learned_reverse=False),
    "two_layer": Lazy("encoders.two_layers:TwoLayerEncoder.build"),
    "uivi": Lazy("encoders.uivi:UnbiasedEncoder.build"),
    **{name: Lazy("encoders.flow:FlowEncoder.build", step=step) for name, step in FLOWS.items()},
}
"""(context, **settings) -> the encoder."""

PRIORS: dict[str, Callable[..., Prior]] = {
    "chained": Lazy("priors:ChainedPrior.build"),
    "mixture": Lazy("priors:MixturePrior.build"),
    "realnvp": Lazy("priors:FlowPrior.build"),
    "standard": Lazy("priors:StandardNormalPrior.build"),
    "vamp": Lazy("priors:VampPrior.build"),
}
"""(context, **settings) -> the prior."""


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Lazy("nets.dense:BernoulliLikelihood"),
    "categorical": Lazy("likelihoods:CategoricalLikelihood"),
    "continuous_bernoulli": Lazy("likelihoods:ContinuousBernoulliLikelihood"),
    "gaussian": Lazy("likelihoods:GaussianLikelihood"),
    "logistic": Lazy("likelihoods:LogisticLikelihood"),
    "logistic_mixture": Lazy("likelihoods:LogisticMixtureLikelihood"),
}
"""(**settings) -> the family of p(x|z)."""


def _maximising(bound: Callable[..., torch.Tensor]) -> Callable[..., Objective]:
    return lambda gradient, **arguments: Objective(partial(bound, **arguments) if arguments else bound, gradient)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "elbo": _maximising(bounds.elbo),
    "iwae": _maximising(bounds.iwae),
    "ciwae": _maximising(bounds.ciwae),
    "miwae": _maximising(bounds.miwae),
    "piwae": lambda gradient, groups: Objective(
        bounds.iwae, gradient, encoder_target=partial(bounds.miwae, groups=groups)
    ),
    "renyi": lambda gradient, alpha: Objective(bounds.iwae, gradient, target=partial(bounds.renyi, alpha=alpha)),
    "vr_max": lambda gradient: Objective(bounds.iwae, gradient, target=partial(bounds.renyi, alpha=-math.inf)),
    "tvo": lambda gradient, partitions, first: Objective(
        bounds.iwae, gradient, target=partial(bounds.tvo, betas=bounds.tvo_schedule(partitions, first))
    ),
    "beta": lambda gradient, kl_weight: Objective(bounds.elbo, gradient, kl_weight=kl_weight),
    "free_bits": lambda gradient, nats: Objective(bounds.elbo, gradient, free_bits=nats),
}
"""(gradient, **settings) -> the objective, by the yaml's ``bound``. If the maximised quantity is not a lower bound, the
lower bound of the same samples is reported."""

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "ais": Lazy("evaluate.annealing:annealed"),
    "bdmc": Lazy("evaluate.annealing:bidirectional"),
    "gaps": Lazy("evaluate.gaps:inference_gaps"),
    "iwae": Lazy("evaluate.importance:importance_weighted"),
    "sandwich": Lazy("evaluate.sandwich:sandwiched"),
}
"""inputs -> the job of the estimator."""


def registered(kind: str, registry: dict[str, Any], name: str) -> Any:
    """Return the registry's entry of that name, or else that of a plug-in.

    Raises:
        UserError: neither has such a name, or a plug-in has one of the registry's, or it cannot be imported.
    """
    if plugin := plugins.foreign(kind, name, registry):
        return plugin.load()
    if name not in registry:
        known = [*registry, *plugins.names(kind)]
        word = "bound" if kind == "objective" else kind
        raise UserError(
            f"unknown {word} '{name}'{did_you_mean(name, known)}; valid: {', '.join(known)}, and those of plug-ins "
            "(install the package, or add --plugin FILE)"
        )
    return registry[name]
