"""`vaebench check`: run the contract of an encoder, prior, decoder, likelihood, objective, estimator or data set."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaebench.cli.flags import CHECK, parse
from vaebench.config.catalog import config_folders, described, own_keys
from vaebench.config.words import key_value
from vaebench.errors import RunFailed, UserError, did_you_mean
from vaebench.typed import clipped

__all__ = ["KINDS", "run"]

KINDS = ("encoder", "prior", "decoder", "likelihood", "objective", "estimator", "dataset")

HELP = """usage: vaebench check KIND=NAME|NAME [KEY=VALUE ...]

Check that an encoder, prior, decoder, likelihood, objective, estimator or dataset keeps its contract, on small models
with known answers. Most parts take less than a minute on a CPU. Exit code 0: all rows passed; 1: the last line names
the checks that failed.

A row passes if `got` differs from `expected` by at most `tolerance` (`>=`, `<=`: on the wrong side). Networks are
small; those of a decoder have its widths. KEY=VALUE are settings of the part, such as encoder.width=0.5.

examples:
  vaebench check encoder=laplace encoder.width=0.5
  vaebench check laplace
  vaebench check dataset=mnist5k data_dir=data
"""


def run(words: list[str]) -> int:
    """Run ``vaebench check <words>`` and return the exit code."""
    parsed = parse(words, CHECK, HELP)
    if not parsed.rest:
        raise UserError(f"name a part to check: KIND=NAME, KIND one of {', '.join(KINDS)}")
    first, *settings = parsed.rest
    kind, name = named(first)
    return carry_out(kind, name, settings)


def named(word: str) -> tuple[str, str]:
    """Return (kind, name) of ``encoder=laplace``, or of ``laplace`` if one kind alone has a choice of that name."""
    kind, name = key_value(word)
    if name is not None:
        if kind not in KINDS:
            raise UserError(
                f"'{clipped(kind)}' is no kind of part{did_you_mean(clipped(kind), KINDS)}; kinds: {', '.join(KINDS)}"
            )
        return kind, name
    choices = {kind: [listed.choice for listed in described(kind, config_folders())] for kind in KINDS}
    found = [kind for kind in KINDS if word in choices[kind]]
    if not found:
        known = sorted({choice for names in choices.values() for choice in names})
        raise UserError(f"there is no '{clipped(word)}'{did_you_mean(clipped(word), known)}; see `vaebench list`")
    if len(found) > 1:
        raise UserError(f"'{word}' is ambiguous: write {' or '.join(f'{kind}={word}' for kind in found)}")
    return found[0], word


def carry_out(kind: str, name: str, settings: Sequence[str]) -> int:
    """Run the checks; print the rows of each check when it ends."""
    import torch

    from vaebench.config import compose
    from vaebench.records.text import counted
    from vaebench.selftest.table import as_text
    from vaebench.testing import examined

    words = [f"{kind}={name}", *companions(kind, name), *settings]
    contract = contract_of(kind, compose(words))
    started, failed, rows = time.monotonic(), [], 0
    torch.set_num_threads(1)  # the tensors are small
    for number, outcome in enumerate(examined(contract)):
        print(f"[{number + 1}/{len(contract)}] {outcome.check}\n{as_text(outcome)}", flush=True)
        rows += len(outcome.rows)
        if not outcome.passed:
            failed.append(outcome.check)
    verdict = f"{counted(len(failed), 'check')} failed" if failed else "all passed"
    print(f"{counted(len(contract), 'check')}, {counted(rows, 'row')}; {verdict}; {time.monotonic() - started:.0f} s")
    if failed:
        raise RunFailed(f"{kind}={name} does not keep its contract: {', '.join(failed)}")
    return 0


def companions(kind: str, name: str) -> list[str]:
    """Return the settings without which a choice is refused: grey levels, or an encoder with inner samples."""
    if kind == "likelihood" and name != "bernoulli":
        return ["dataset.binarization=none"]
    if kind == "objective" and any(listed.choice == name for listed in described("objective", config_folders())):
        inner = own_keys("objective", name, config_folders(), of="encoder")
        return ["encoder=iwhvi"] if inner.get("inner_k") is not None else []
    return []


def contract_of(kind: str, config: Any) -> Mapping[str, Any]:
    """Return the checks of the part that the configuration chooses."""
    from vaebench import registry, testing
    from vaebench.nets.networks import TRUNKS, network_of

    chosen = getattr(config, kind)
    if kind == "dataset":
        from vaebench.datasets.dataset import load

        own = {"binarization": chosen.binarization, "split": chosen.split, "seed": chosen.seed}
        return testing.dataset_contract(
            lambda: load(chosen.name, Path(config.data_dir), progress=False, **own, **chosen.arguments)
        )
    if kind == "estimator":
        given = {key: value for key, value in config.to_dict()["estimator"].items() if key != "name"}
        return testing.estimator_contract(registry.registered(kind, registry.ESTIMATORS, chosen.name), given)
    if kind == "encoder":
        build = registry.registered(kind, registry.ENCODERS, chosen.name)
        return testing.encoder_contract(build, chosen.arguments, chosen.inner_k or 3)
    if kind == "objective":
        build = registry.registered(kind, registry.OBJECTIVES, chosen.bound)
        return testing.objective_contract(build, chosen.arguments)
    if kind == "decoder":
        build = network_of(chosen.name) if chosen.name in TRUNKS else registry.registered(kind, TRUNKS, chosen.name)
        return testing.decoder_contract(build, chosen.hidden, chosen.activation)
    if kind == "prior":
        return testing.prior_contract(registry.registered(kind, registry.PRIORS, chosen.name), chosen.arguments)
    build = registry.registered(kind, registry.LIKELIHOODS, chosen.name)
    return testing.likelihood_contract(build, chosen.arguments)
