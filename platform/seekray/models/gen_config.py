"""What an experiment says of a generative adversarial network, and what a caller may ask of one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from seekray.models.family import ModelConfig, RequestConfig
from seekray.models.gen_losses import Loss


class Turn(ModelConfig):
    """One network's own optimizer; what is null is `training`'s."""

    optimizer: Literal["adam", "adamw", "sgd"] | None = Field(None, description="null: training.optimizer")
    lr: float | None = Field(None, gt=0, description="null: training.lr")
    betas: tuple[float, float] = Field((0.5, 0.9), description="adam and adamw: decay of the averages of gradient and square")
    weight_decay: float | None = Field(None, ge=0, description="null: training.weight_decay")


class GenConfig(ModelConfig):
    """Sizes, loss and turns of the two networks."""

    condition: str | tuple[str, ...] = Field((), description="columns that are given, not made: a class, or any others")
    hidden_size: int = Field(128, ge=1, description="neurons of a layer; of images, channels of the largest feature map")
    num_layers: int = Field(2, ge=0, description="residual layers of a network; of texts, layers of the GRU")
    latent_size: int = Field(32, ge=1, description="noise that a row is made of")
    norm: Literal["none", "layer", "batch"] = Field(
        "layer", description="in the generator; images and texts know none and layer"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the discriminator, before its score")
    loss: Loss = Field("wasserstein", description="the source's is non_saturating; wasserstein collapses least")
    gradient_penalty: float | None = Field(None, ge=0, description="null: 10 for wasserstein, else 0")
    spectral_norm: bool = Field(False, description="of the discriminator")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="non_saturating and least_squares: real rows count as 1 less it"
    )
    discriminator_steps: int = Field(1, ge=1, description="batches that the discriminator learns for each of the generator's")
    temperature: float = Field(0.5, gt=0, description="of the Gumbel-softmax of categories and characters in training")
    generator: Turn = Turn()
    discriminator: Turn = Turn()

    @model_validator(mode="after")
    def _rules(self) -> GenConfig:
        if self.label_smoothing and self.loss not in ("non_saturating", "least_squares"):
            raise ValueError(f"model.label_smoothing is for non_saturating and least_squares, not for {self.loss}")
        return self

    @property
    def conditions(self) -> tuple[str, ...]:
        """The columns that are given."""
        return (self.condition,) if isinstance(self.condition, str) else self.condition

    @property
    def penalty(self) -> float:
        """Weight of the gradient penalty."""
        return self.gradient_penalty if self.gradient_penalty is not None else 10.0 if self.loss == "wasserstein" else 0.0


class GenRequest(RequestConfig):
    """What may be asked of a generator."""

    rows: int = Field(1, ge=1, description="how many")
    first: int = Field(0, ge=0, description="number of the first: rows are a stream that the seed fixes")
    seed: int = Field(0, ge=0, description="the same seed gives the same rows")
    where: dict[str, Any] = Field({}, description="column: the value that every row shall have")

    @model_validator(mode="after")
    def _values(self) -> GenRequest:
        for column, value in self.where.items():
            if isinstance(value, dict | list):
                raise ValueError(f"where: {column} is {type(value).__name__}, expected one value")
        return self
