"""The settings of one run, and of what is measured on it: frozen and validated."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pyrovae import parts
from pyrovae.errors import InputError
from pyrovae.parts import Component, Value

#: The kinds of components of a run, in the order in which they are used.
DATA_KINDS = ("data", "split", "pixels")
PROGRAM_KINDS = ("model", "prior", "likelihood", "guide", "network")
KINDS = (*DATA_KINDS, "pair", *PROGRAM_KINDS)
#: Precision of the networks while they train.
Precision = Literal["float32", "tf32", "bfloat16"]
#: How the learning rate changes: not at all, or down to zero over the last steps.
LearningRateSchedule = Literal["constant", "tail"]
#: Which weights are measured: those of the last step, or those with the lowest loss on validation images.
Keep = Literal["last", "best"]
#: The tail is one step in so many.
TAIL = 5
#: A number of things, below what any machine could hold.
Count = Annotated[int, Field(le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """Settings that cannot be changed, with one clear line for each mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise InputError(self._first_mistake(error)) from None

    @classmethod
    def _first_mistake(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][:1]))  # not the member of a union
        if first["type"] == "extra_forbidden":
            return f"unknown setting {place!r:.200}; valid: {', '.join(sorted(cls.model_fields))}"
        problem = first["msg"].removeprefix("Value error, ")
        if problem.startswith("unknown "):
            return problem
        got = "" if ", got " in problem else f", got {first['input']!r:.200}"
        return f"{place}: {problem[0].lower()}{problem[1:]}{got}"

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"expected a number or a string, got the boolean {value}")
        if isinstance(value, int) and value.bit_length() > 1000:  # Python shows no such number
            raise ValueError(f"expected a number below 2^1000, got one of {value.bit_length():,} bits")
        if isinstance(value, bytes):
            raise ValueError("expected a number or a string, got binary data")
        if isinstance(value, str) and not " ".join(value.split()).isprintable():
            raise ValueError("expected printable text")
        return value


class Run(Frozen):
    """The settings of one run: one pair trained at one β with one seed.

    Settings of its components, such as ``depth`` or ``prior.components``, are given along with these; which there are
    is up to the components (`pyrovae.parts.settings_of`), and is checked when a study is planned or a pair is made. A
    component may bring its own, as in ``prior={"name": "mixture", "components": 10}``.

    Example:
        >>> run = Run(beta=0.1, depth=3, prior={"name": "mixture", "components": 10})
        >>> run.prior, run.settings
        ('mixture(components=10)', {'depth': 3})
        >>> Run(prior="vampp")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        pyrovae.errors.InputError: unknown prior 'vampp'; valid: aggregate, ...
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Value]

    data: str = Field("tetrominoes", description="data set")
    split: str = Field("random", description="how the data set is divided into train and test")
    train_images: Count | None = Field(None, ge=2, description="training images to use; null: all")
    test_images: Count | None = Field(None, ge=2, description="test images to use; null: all")
    validation_images: Count | None = Field(
        None, ge=2, description="training images to set apart for validation, the same in all runs; null: none"
    )
    images_per_class: Count | None = Field(None, ge=1, description="training images to use of each class; null: all")
    data_seed: Seed | Literal["seed"] = Field(
        0, description="which training images are drawn; seed: others for every seed"
    )
    pixels: str = Field("continuous", description="continuous, or binarised: static (once), dynamic (at each step)")
    pair: str | None = Field(None, description="model and guide as one component of yours; null: those below")
    model: str = Field("vae", description="p(x, z)")
    prior: str = Field("standard_normal", description="p(z)")
    likelihood: str = Field("bernoulli", description="p(x|z)")
    guide: str = Field("mean_field", description="q(z|x)")
    latent_size: Count = Field(10, ge=1, description="dimensions of z")
    network: str = Field("mlp", description="encoder and decoder")
    beta: float = Field(1.0, gt=0, description="weight of the rate")
    target_rate: float | None = Field(
        None, gt=0, le=1e6, description="R that β is moved for, in nats per image of training; null: β is constant"
    )
    gamma: float | None = Field(None, ge=0, le=1e30, description="weight of G, where the model is gap; null: β")
    warmup: float = Field(0.0, ge=0, le=1, description="share of a cycle over which β rises to its value; 0: constant")
    cycles: Count = Field(1, ge=1, description="number of times that β rises from 0")
    seed: Seed = Field(0, description="seed of initial weights, batch order and noise")
    steps: Count = Field(1000, ge=1, description="training steps")
    batch_size: Count = Field(128, ge=1, description="images in a batch")
    learning_rate: float = Field(1e-3, gt=0, description="step size of Adam")
    learning_rate_schedule: LearningRateSchedule = Field(
        "constant", description="constant, or tail: down to zero over the last fifth of the steps"
    )
    keep: Keep = Field(
        "last", description="weights to measure: the last, or the best by validation loss along the learning curve"
    )
    precision: Precision = Field(
        "float32", description="of the networks while they train: float32, tf32 (on a GPU) or bfloat16"
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Settings that are not the defaults."""
        fields = type(self).model_fields
        return (each for each in super().__repr_args__() if each[0] not in fields or each[1] != fields[each[0]].default)

    @property
    def settings(self) -> Mapping[str, Value]:
        """The settings of components that the run sets, by name or by ``kind.name``."""
        return self.__pydantic_extra__

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of components that the run is made of."""
        return (*DATA_KINDS, *(PROGRAM_KINDS if self.pair is None else ("pair",)))

    def component(self, kind: str) -> Component:
        """The component of a kind that the run names."""
        return parts.parse(getattr(self, kind))

    def weights(self) -> dict[str, float]:
        """The weights of the loss, by the names by which programs take them."""
        return {"beta": self.beta, "gamma": self.beta if self.gamma is None else self.gamma}

    @property
    def training_set(self) -> int:
        """The number of the training set, `data_seed` or the seed."""
        return self.seed if self.data_seed == "seed" else self.data_seed

    @property
    def is_stretched(self) -> bool:
        """Whether more steps would change earlier ones, because β has a schedule over all of them."""
        return self.warmup > 0

    @property
    def branch_step(self) -> int | None:
        """The step from which the learning rate falls, and from which a longer run continues; None if it is constant.

        Example:
            >>> Run(steps=100, learning_rate_schedule="tail").branch_step
            80
        """
        return None if self.learning_rate_schedule == "constant" else self.steps - self.steps // TAIL

    def learning_rate_share(self, step: int) -> float:
        """Share of the learning rate in force at a step: 1, or in the tail (T − t) / (T − t₀).

        Here T is the number of steps, t the steps done and t₀ the `branch_step`.

        Example:
            >>> [Run(steps=10, learning_rate_schedule="tail").learning_rate_share(step) for step in (0, 7, 8, 9)]
            [1.0, 1.0, 1.0, 0.5]
        """
        start = self.branch_step
        if start is None or start == self.steps:  # fewer steps than a tail has
            return 1.0
        return 1.0 if step < start else (self.steps - step) / (self.steps - start)

    def beta_share(self, step: int) -> float:
        """Share of β in force at a step: min(1, φ / warmup), with φ in (0, 1] how much of the cycle has passed.

        Linear warm-up (Bowman et al. 2016) with one cycle, cyclical annealing (Fu et al. 2019) with several. It is 1
        where β is constant, and always at the last step.

        Example:
            >>> [Run(steps=8, warmup=0.5, cycles=2).beta_share(step) for step in range(8)]
            [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]
        """
        phase = (step * self.cycles % self.steps + self.cycles) / self.steps
        return min(1.0, phase / self.warmup) if self.warmup else 1.0

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, settings: Any) -> Any:
        """A setting of a component that is null is not set."""
        if not isinstance(settings, Mapping):
            return settings
        return {key: value for key, value in settings.items() if key in cls.model_fields or value is not None}

    @field_validator(*KINDS, mode="before")
    @classmethod
    def _labelled(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        settings = dict(value)
        name = settings.pop("name", None)
        if not isinstance(name, str) or not all(isinstance(each, Value) for each in settings.values()):
            raise ValueError("expected a name and settings such as {name: mixture, components: 10}")
        return parts.label(name, settings)

    @field_validator(*KINDS)
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            parts.check_name(str(info.field_name), parts.parse(value).name)
        return value

    @field_validator("beta")
    @classmethod
    def _representable(cls, beta: float) -> float:
        if not 1e-30 <= beta <= 1e30:
            raise ValueError("expected a weight between 1e-30 and 1e30, as float32 can hold")
        return beta


class Measure(Frozen):
    """What is measured, and on how much of the data."""

    images: Count = Field(2048, ge=2, description="images of each split on which D and R are measured")
    samples: Count = Field(1, ge=1, description="draws of z per image")
    outer: Count = Field(
        1024, ge=2, description="images of each split over which I, G and rates under q(z) are averaged"
    )
    likelihood_images: Count = Field(128, ge=2, description="test images on which log p(x) is bounded")
    particles: Count = Field(256, ge=2, description="draws of z per image behind the importance-weighted bound")
    temperatures: Count = Field(0, ge=0, description="steps of annealing from p(z) to p(z|x), a second bound; 0: none")
    chains: Count = Field(8, ge=2, description="chains of annealing per image")
    gap_images: Count = Field(
        64, ge=2, description="images of each split behind generalization_gap and fixed_decoder_curve"
    )
    gap_temperatures: Count = Field(200, ge=1, description="steps of annealing behind these two")
    reconstructions: Count = Field(256, ge=2, description="images of each split that are reconstructed")
    probe: Count = Field(256, ge=2, description="images of each split behind the learning curves")
    points: Count = Field(16, ge=1, le=1000, description="points of the learning curves for every tenfold of steps")
    also: tuple[str, ...] = Field((), description="further measures: names, or module:function for yours")

    @property
    def per_image(self) -> int:
        """Images of a split for which some number is stored per image."""
        return max(self.images, self.likelihood_images, self.reconstructions)

    @property
    def most_images(self) -> int:
        """The most images of a split over which a mean is taken."""
        return max(self.per_image, self.outer)
