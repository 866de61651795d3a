"""Names that papers and other programs use, with the settings of vaebench. An unknown name is looked up here."""

__all__ = ["choice_for", "key_for", "settings_for"]

_BETA_VAE = "objective=beta objective.kl_weight=4"
_VAMP = "prior=vamp"

CHOICES: dict[str, dict[str, str]] = {
    "encoder": {
        "vae": "encoder=gaussian objective=elbo",
        "iwae": "encoder=gaussian objective=iwae k=16",
        "nf": "encoder=realnvp",
        "flow": "encoder=realnvp",
        "normalizing_flow": "encoder=realnvp",
        "normalising_flow": "encoder=realnvp",
        "affine_coupling": "encoder=realnvp",
        "maf": "encoder=iaf",
        "spline": "encoder=nsf",
        "hierarchical": "encoder=hvm",
        "semi_implicit": "encoder=sivi",
        "adversarial": "encoder=avb",
        "hmc": "encoder=hvae",
        "hvi": "encoder=hvae",
        "ladder_vae": "encoder=ladder",
        "lvae": "encoder=ladder",
        "normal": "encoder=gaussian",
        "diagonal": "encoder=gaussian",
        "diagonal_gaussian": "encoder=gaussian",
        "mean_field": "encoder=gaussian",
        "full_covariance": "encoder=full_gaussian",
        "beta_vae": _BETA_VAE,
        "elbo": "encoder=gaussian objective=elbo",
        "dreg": "objective=iwae objective.gradient=dreg k=16",
        "stl": "objective=elbo objective.gradient=stl",
        "vampprior": _VAMP,
        "vamp": _VAMP,
        "mlp": "decoder=mlp",
        "cnn": "decoder=resnet",
        "conv": "decoder=resnet",
        "resnet": "decoder=resnet",
    },
    "objective": {
        "vae": "objective=elbo",
        "vi": "objective=elbo",
        "kl": "objective=elbo",
        "iwelbo": "objective=iwae k=16",
        "dreg": "objective=iwae objective.gradient=dreg k=16",
        "stl": "objective=elbo objective.gradient=stl",
        "reparam": "objective=elbo objective.gradient=reparam",
        "beta_vae": _BETA_VAE,
        "warmup": "trainer.kl_warmup=10",
        "kl_warmup": "trainer.kl_warmup=10",
        "vr": "objective=renyi k=16",
    },
    "prior": {
        "normal": "prior=standard",
        "gaussian": "prior=standard",
        "gmm": "prior=mixture",
        "mog": "prior=mixture",
        "vampprior": _VAMP,
        "flow": "prior=realnvp",
    },
    "decoder": {
        "conv": "decoder=resnet",
        "cnn": "decoder=resnet",
        "dense": "decoder=mlp",
        "linear": "decoder=mlp",
    },
    "likelihood": {
        "normal": "likelihood=gaussian dataset.binarization=none",
        "mse": "likelihood=gaussian dataset.binarization=none",
        "bce": "likelihood=bernoulli",
        "discretized_logistic": "likelihood=logistic dataset.binarization=none",
    },
    "optimizer": {
        **dict.fromkeys(("sgd", "momentum", "nesterov", "adagrad", "adadelta", "lbfgs"), "optimizer=adam"),
        **dict.fromkeys(("adamw", "nadam", "radam", "amsgrad", "adabelief", "lion", "lamb"), "optimizer=adam"),
        "cosine": "optimizer=adam optimizer.schedule=cosine",
    },
    "estimator": {
        "is": "estimator=iwae",
        "importance": "estimator=iwae",
        "importance_sampling": "estimator=iwae",
        "elbo": "estimator=iwae estimator.k=1",
        "nll": "estimator=iwae",
        "log_likelihood": "estimator=iwae",
        "iwelbo": "estimator=iwae",
        "annealed_importance_sampling": "estimator=ais",
        "none": "trainer.evaluate=false",
    },
    "dataset": {
        "static_mnist": "dataset=binarized_mnist",
        "binary_mnist": "dataset=binarized_mnist",
        "fashion": "dataset=fashion_mnist",
        "custom": "dataset=own",
        "folder": "dataset=own",
    },
}
"""Group -> name in lower case, with _ for every other sign -> the settings."""

KEYS = {
    "learning_rate": "optimizer.lr",
    "scheduler": "optimizer.schedule",
    "lr_schedule": "optimizer.schedule",
    "num_epochs": "trainer.epochs",
    "n_epochs": "trainer.epochs",
    "max_epochs": "trainer.epochs",
    "batchsize": "trainer.batch_size",
    "bs": "trainer.batch_size",
    "warmup": "trainer.kl_warmup",
    "kl_annealing": "trainer.kl_warmup",
    "grad_clip": "trainer.clip_norm",
    "gradient_clip": "trainer.clip_norm",
    "max_grad_norm": "trainer.clip_norm",
    "early_stopping": "trainer.patience",
    "amp": "trainer.precision=bf16",
    "mixed_precision": "trainer.precision=bf16",
    "fp16": "trainer.precision=bf16",
    "bf16": "trainer.precision=bf16",
    "beta": "objective=beta objective.kl_weight",
    "loss": "objective",
    "model": "encoder",
    "method": "encoder",
    "posterior": "encoder",
    "optim": "optimizer",
    "momentum": "optimizer.betas=[0.9,0.999]",
    "data": "dataset",
    "z_dim": "latent_dim",
    "zdim": "latent_dim",
    "latent_size": "latent_dim",
    "latents": "latent_dim",
    "samples": "k",
    "num_samples": "k",
    "n_samples": "k",
    "iw_samples": "k",
    "hidden_dim": "decoder.hidden=[300,300]",
    "hidden_size": "decoder.hidden=[300,300]",
    "layers": "decoder.hidden=[300,300]",
    "random_seed": "seed",
    "gpu": "device=cuda",
    "gpus": "device=cuda",
    "cuda": "device=cuda",
    "data_path": "data_dir",
    "dataset_dir": "data_dir",
    "root": "data_dir",
    "save_dir": "output_dir",
    "out_dir": "output_dir",
    "log_dir": "output_dir",
    "output": "output_dir",
    "run_name": "name",
    "experiment_name": "name",
}
"""The last part of a key, in lower case -> the key; with a value where the user's value has another meaning."""


def choice_for(group: str, name: str) -> str:
    """Return the settings of a choice by its usual name, for example of ``encoder=vae``; "" if it has none."""
    return CHOICES.get(group, {}).get(_plain(name), "")


def key_for(key: str, value: str | None = None) -> str:
    """Return the setting of a key by its usual name, for example ``optimizer.lr=0.01``; "" if it has none."""
    setting = KEYS.get(_plain(key.rpartition(".")[2]), "")
    if setting.rpartition(".")[2] == key or setting == key:
        return ""
    return setting if not setting or "=" in setting.split()[-1] else f"{setting}={'...' if value is None else value}"


def settings_for(name: str) -> str:
    """Return the settings of a word without a key: the first group that has it as a usual name, or else a key."""
    return next(filter(None, (choice_for(group, name) for group in CHOICES)), "") or key_for(name)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
