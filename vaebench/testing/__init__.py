"""The contracts of the parts that a package may add: encoders, priors, likelihoods, objectives, estimators, data.

Each ``check_*`` function takes what the part's entry point names, prints one row for each comparison, and raises
AssertionError with the rows that fail. All random numbers are seeded. ``vaebench check`` shows the same rows.
"""

from vaebench.testing.contract import Contract, examined, verify
from vaebench.testing.datasets import check_dataset, dataset_contract
from vaebench.testing.decoders import check_decoder, decoder_contract
from vaebench.testing.encoders import check_encoder, encoder_contract, images, moved, reference_model
from vaebench.testing.estimators import check_estimator, estimator_contract
from vaebench.testing.likelihoods import check_likelihood, likelihood_contract
from vaebench.testing.objectives import check_objective, objective_contract
from vaebench.testing.priors import check_prior, prior_contract

__all__ = [
    "Contract",
    "check_dataset",
    "check_decoder",
    "check_encoder",
    "check_estimator",
    "check_likelihood",
    "check_objective",
    "check_prior",
    "dataset_contract",
    "decoder_contract",
    "encoder_contract",
    "estimator_contract",
    "examined",
    "images",
    "likelihood_contract",
    "moved",
    "objective_contract",
    "prior_contract",
    "reference_model",
    "verify",
]
