"""The harmonic mean as an estimator: an estimate that is unstable, and says so."""

from functools import cache, partial

from torch import Tensor

from vaebench.direction import Direction
from vaebench.errors import RunFailed, UserError
from vaebench.evaluation.ais import LEAST_ACCEPTANCE, MOST_ACCEPTANCE, UNMIXED_SHARE
from vaebench.evaluation.harmonic import HarmonicResult, harmonic_mean_likelihood
from vaebench.experiment.assembly import Experiment
from vaebench.experiment.estimators.annealing import Annealing
from vaebench.experiment.estimators.plan import Finding, Plan, chosen

__all__ = ["harmonic"]


def harmonic(experiment: Experiment) -> Plan:
    """Plan the harmonic mean over posterior draws."""
    given, images, annealing = experiment.config.estimator, chosen(experiment), Annealing.of(experiment)
    if given.burn_in < 0 or given.draws < 1:
        raise UserError("estimator.draws must be at least 1, and estimator.burn_in 0 or more")
    own = {"draws": given.draws, "burn_in": given.burn_in}

    model = cache(partial(annealing.model, experiment, len(images.numbers)))

    def numbers(part: slice) -> Tensor:
        with annealing.seeded(part):
            return harmonic_mean_likelihood(
                model(),
                experiment.data.observe(images.intensities[part]),
                annealing.encoder,
                seed=given.seed,
                images=images.numbers[part],
                **own,
                **vars(annealing.settings),
            ).rows()

    def conclude(rows: Tensor) -> list[Finding]:
        result = HarmonicResult(*rows)
        refuse_stuck(result.acceptance)
        share = result.largest_share.mean().item()
        finding = Finding(
            estimator="harmonic mean",
            direction=Direction.ESTIMATE,
            values=result.log_likelihood,
            settings=own | annealing.shown(),
            extra={
                "acceptance": result.acceptance.mean().item(),
                "ess": result.ess.mean().item(),
                "largest_share": share,
            },
            note=(
                "unstable: it misses the rare draws that its mean depends on, and is then many nats too high, whatever "
                f"its error says; one draw makes up {100 * share:.0f} % of an image's mean. For a number to report, "
                "take estimator=ais"
            ),
        )
        return [finding]

    return Plan(
        split=given.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["harmonic", given.seed, *own.items(), *annealing.shown().items()],
        rows=HarmonicResult.names(),
        batch=annealing.batch,
        numbers=numbers,
        conclude=conclude,
        compiles=True,
    )


def refuse_stuck(acceptance: Tensor) -> None:
    """Raise RunFailed if the posterior's chains hardly moved for more than one image in twenty."""
    stuck = int(((acceptance < LEAST_ACCEPTANCE) | (acceptance > MOST_ACCEPTANCE)).sum())
    if stuck > UNMIXED_SHARE * len(acceptance):
        raise RunFailed(
            f"harmonic mean: the chains of {stuck} of {len(acceptance)} images hardly moved at the posterior. Try more "
            "estimator.temperatures or estimator.leapfrog"
        )
