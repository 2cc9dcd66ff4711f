"""What the `mil` room can be told: methods by name, and one frozen struct of settings with two presets."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hemomil.errors import SettingsError

Preset = Literal["default", "paper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a method is made of."""

    pooling: Literal["weighted", "max", "logsumexp", "instance", "quantiles"]
    attention: bool = False
    distance: bool = False
    """The distance to the healthy reference is a pooling weight."""
    uniform: bool = False
    """1/N is a pooling weight: alone it is the mean, beside attention it is the placebo."""
    instance_head: bool = False
    """A classifier of its own on every cell, told the bag's label."""
    instance_loss: bool = False
    """Cells are told the bag's label, with a weight that decays over the epochs."""
    ensemble: bool = False
    """Several networks, whose probabilities are averaged."""
    in_turn_with: "Parts | None" = None
    """What every second network of an ensemble is made of instead."""
    frozen_reference: bool = False
    """The healthy reference lies in the standardised features, not in the learned embedding."""

    witnesses: bool = False
    """Beside it stand networks made without a group of control donors each: what is strange to them is not
    strange because a donor was learned by heart."""

    def of_member(self, member: int) -> "Parts":
        """What this network of an ensemble, counted from 0, is made of."""
        return self.in_turn_with if self.in_turn_with and member % 2 else self


PARTS: dict[str, Parts] = {
    "att": Parts(pooling="weighted", attention=True),
    "att+sic": Parts(pooling="weighted", attention=True, instance_head=True, instance_loss=True),
    "anomaly": Parts(pooling="weighted", distance=True),
    "anomaly+att": Parts(pooling="weighted", attention=True, distance=True),
    "anomaly+att+sic": Parts(
        pooling="weighted", attention=True, distance=True, instance_head=True, instance_loss=True
    ),
    "mean": Parts(pooling="weighted", uniform=True),
    "max": Parts(pooling="max"),
    "lse": Parts(pooling="logsumexp"),
    "instance": Parts(pooling="instance"),
    "anomaly-quantiles": Parts(pooling="quantiles", distance=True, frozen_reference=True),
    "placebo": Parts(pooling="weighted", attention=True, uniform=True),
    "default": Parts(
        pooling="logsumexp",
        instance_loss=True,
        ensemble=True,
        in_turn_with=Parts(pooling="weighted", attention=True),
        frozen_reference=True,
        witnesses=True,
    ),
}
METHODS: tuple[str, ...] = tuple(PARTS)


def parts_of(method: str) -> Parts:
    """What `method` is made of. Raises SettingsError for an unknown name."""
    if method not in PARTS:
        raise SettingsError(f"no method is called {method!r}", hint=f"choose among {', '.join(METHODS)}")
    return PARTS[method]


class MILSettings(BaseModel):
    """Every choice of the `mil` room; the values given here are those of `preset=default`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(40, ge=1, description="Passes over the training bags; the last one is kept.")
    learning_rate: float = Field(1e-3, gt=0, description="Step size of Adam.")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty of Adam.")
    batch_bags: int = Field(16, ge=1, description="Bags in one optimiser step.")
    instance_decay: float = Field(
        0.95, ge=0, le=1, description="Weight of the cells' own loss is this to the power of the epoch."
    )
    embedding: int = Field(64, ge=1, description="Length of a cell's embedding.")
    hidden: int = Field(0, ge=0, description="Hidden units of the encoder of vectors; 0: none.")
    attention_hidden: int = Field(64, ge=1, description="Hidden units of the attention.")
    instance_hidden: int = Field(0, ge=0, description="Linear bottleneck of the cells' classifier; 0: none.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of an embedding hidden in each step.")
    roi: Literal["convolutions", "averages"] = Field(
        "averages",
        description="How RoI maps are read: the paper's four layers, or mean and maximum a channel.",
    )
    mixing: Literal["free", "convex"] = Field(
        "convex",
        description="How attention and distance are mixed: the paper's 1x1 convolution, or shares of one.",
    )
    distance_weights: Literal["softmax", "share", "raw"] = Field(
        "share",
        description="Distance as a weight: softmax over the bag, bounded share of the bag, or as it is.",
    )
    components: int = Field(1, ge=1, description="Components of the healthy reference.")
    mixture: Literal["gaussian", "bayesian"] = Field("gaussian", description="Kind of Gaussian mixture.")
    em_iterations: int = Field(100, ge=1, description="Most EM iterations of the reference.")
    covariance: Literal["regularised", "shrunk"] = Field(
        "shrunk",
        description="Covariance of a one-component reference: sklearn's reg_covar, or OAS shrinkage.",
    )
    reg_covar: float = Field(1e-6, ge=0, description="Added to the diagonal of the reference's covariance.")
    refit_every: int = Field(5, ge=1, description="Epochs between two fits of the reference.")
    reference_updates: Literal["refit", "streamed"] = Field(
        "refit",
        description="In training, embed all control cells again every refit_every epochs, or, after each, "
        "take the embeddings that its steps came by (one Gaussian only).",
    )
    crossfit_training: bool = Field(
        True, description="In training, a control donor is measured against a reference made without them."
    )
    crossfit_folds: int = Field(5, ge=2, description="Groups of control donors for cross-fitted scores.")
    members: int = Field(6, ge=1, description="Networks averaged by method `default`.")
    witnesses: bool = Field(
        True,
        description="Beside `default`, networks made without a group of control donors each, to judge cells.",
    )
    clip: float | None = Field(
        5.0, gt=0, description="Bound of standardised features, in SD; none: no bound."
    )
    chunk_cells: int = Field(256, ge=1, description="RoI maps encoded at once.")
    bfloat16: bool = Field(
        False,
        description="Encode in bfloat16: faster where a processor has instructions for it, less exact.",
    )
    device: str = Field("cpu", description="Where networks run: cpu, cuda, cuda:1, or auto.")

    @model_validator(mode="after")
    def _one_gaussian_can_be_streamed(self) -> "MILSettings":
        if self.reference_updates == "streamed" and (self.components > 1 or self.mixture == "bayesian"):
            raise ValueError("a mixture cannot be streamed: set reference_updates to refit")
        return self

    @classmethod
    def preset(cls, name: Preset | str = "default", **changes: Any) -> "MILSettings":
        """Settings of `default` or `paper`, some of them changed."""
        if name not in PRESETS:
            raise SettingsError(f"no preset is called {name!r}", hint=f"choose among {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # docs/method.md says of each value where the paper prints it, and where it does not
    "paper": {
        "epochs": 100,
        "learning_rate": 5e-5,
        "weight_decay": 1e-5,
        "batch_bags": 1,
        "embedding": 500,
        "hidden": 0,
        "attention_hidden": 128,
        "instance_hidden": 32,
        "dropout": 0.0,
        "roi": "convolutions",
        "mixing": "free",
        "distance_weights": "softmax",
        "covariance": "regularised",
        "crossfit_training": False,
        "clip": None,
    },
}
