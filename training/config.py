"""The settings of a training run: one flat, frozen model. `training/config_io.py` reads and writes it."""

from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from models.errors import ConfigError, quoted
from models.spec import AXES
from training.loss_spec import parse_loss

# The first setting of each group of `maskserve train --settings`.
SETTING_GROUPS = {
    "architecture": "The network",
    "format": "The images",
    "epochs": "The optimization",
    "precision": "The machine",
}
DEFAULT_EPOCHS = 40  # if neither epochs nor minutes are set


# Settings that only samples of some axes have. One that is set for others is refused (`check_axes`), defaults are ignored.
AXES_OF_SETTINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("input", "side", "flip", "vflip", "hue", "transforms", "classmix", "cutmix", "erasing", "progressive", "cache_decoded"),
        ("HW",),
    ),
    **dict.fromkeys(("rate", "leads", "stretch", "gain", "wander", "hum", "lead_dropout"), ("T",)),
    **dict.fromkeys(("scale", "rotate", "elastic", "color_jitter", "blur"), ("HW", "DHW")),
    **dict.fromkeys(("spacing", "flip_axes", "gamma", "bias_field", "low_resolution"), ("DHW",)),
}  # fmt: skip


class TrainConfig(BaseModel):
    """Every setting of a run, with its unit; `config.yaml` in the run folder holds them as run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the network
    architecture: str = Field("fcn", description="fcn, unet, smp/NAME, torchvision/NAME: `maskserve models` lists them")
    encoder: str = Field(
        "resnet18",
        description="encoder of segmentation-models-pytorch, of timm (tu-NAME), or alexnet (arXiv 1411.4038)",
    )
    weights: str = Field(
        "none", description="initial weights: none (random), pretrained (imagenet), or a FILE or BUNDLE to fine-tune"
    )
    reset_head: bool = Field(
        False, description="do not load the head of the FILE or BUNDLE in weights: for other classes"
    )
    head: Literal["linear", "fcn", "d6", "aspp", "psp"] = Field(
        "fcn",
        description="1x1 only (arXiv 1411.4038); 3x3 then 1x1; FCN-D6 (mmsegmentation); ASPP (arXiv 1706.05587); "
        "pyramid pooling (arXiv 1612.01105)",
    )
    output_stride: Literal[8, 16, 32] | None = Field(
        None,
        description="stride of the encoder, 16 and 8 by dilation (arXiv 1511.07122); default: that of the head's paper",
    )
    skips: Literal["32s", "16s", "8s"] | None = Field(
        None,
        description="finer maps added to the scores (arXiv 1411.4038); default: 8s for linear and fcn, otherwise 32s (none)",
    )
    upsampling: Literal["bilinear", "learned"] = Field(
        "bilinear", description="learned: transposed convolutions, initialized to bilinear (arXiv 1411.4038)"
    )
    aux: bool = Field(
        False,
        description="also train an auxiliary head on the map of stride 16 (arXiv 1612.01105); unet: on every coarser stage "
        "(deep supervision)",
    )
    aux_weight: float = Field(
        0.4, ge=0, le=1, description="weight of the auxiliary head's loss; of the nth head its nth power"
    )
    separable: bool = Field(False, description="depthwise separable 3x3 convolutions in the heads (arXiv 1610.02357)")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="dropout rate before the 1x1 classifier (Srivastava et al. 2014)",
    )
    init: Literal["kaiming", "xavier"] = Field(
        "kaiming", description="initialization of random weights: arXiv 1502.01852, or Glorot and Bengio 2010"
    )
    width: int = Field(
        32, ge=4, description="unet: channels of the first stage, doubled by each further one, up to 16 times"
    )
    strides: list[int | list[int]] | None = Field(
        None, description="unet: stride of each stage, or [rows,columns]; default: 2,2,2,2,2; nnU-Net's: 1,2,2,2,2,2"
    )
    kernel: int | list[int | list[int]] = Field(
        3, description="unet: odd size of the kernels, of all stages or of each, or [rows,columns]"
    )
    blocks: int | list[int] = Field(2, description="unet: residual blocks, of every stage or of each")
    norm: Literal["batch", "instance"] = Field(
        "batch",
        description="unet: batch norm, or instance norm, whose statistics are those of the padded image or tile",
    )

    # the images
    format: str = Field(
        "auto", description="format of the data set: a name in training/data/formats, or auto to detect it"
    )
    channels: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="names of the channels to train on, in order: nir,red,green; names all bands of files that name none; "
        "default: those of the files",
    )
    scaling: Literal["auto", "fixed", "window", "zscore"] = Field(
        "auto",
        description="samples to the network's range: fixed (sample_range), window (quantiles of the training images), zscore "
        "(mean and deviation of each image); auto: by the files",
    )
    sample_range: tuple[float, float] | None = Field(
        None, description="low,high of the samples for scaling=fixed; default: the range of their type, 0,1 for floats"
    )
    nodata: float | None = Field(
        None, description="value of missing pixels, which are ignored; beside those that the files mark themselves"
    )
    input: Literal["fit", "native"] = Field(
        "fit", description="fit: resize images to one long side; native: keep their size"
    )
    side: int | None = Field(
        None, ge=32, description="long side for fit, pixels; default: the median of the training images, at most 1024"
    )
    crop: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        max_length=3,
        description="height,width of the training crop, pixels; of signals its time steps, of volumes depth,height,width; default: "
        "the resized image, at most 512, multiples of 32; the median signal, at most 4096",
    )
    scale: tuple[float, float] = Field((0.5, 2.0), description="smallest,largest factor of the random scaling")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip; 0 if left and right differ")
    vflip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip: for microscopes and satellites")
    spacing: tuple[float, float, float] | None = Field(
        None,
        description="volumes: depth,height,width spacing to train at, mm; default: the median of the training volumes",
    )
    flip_axes: str = Field(
        "",
        description="volumes: axes that half of the patches are mirrored along, such as HW; W is left to right",
    )
    rotate: float = Field(0.0, ge=0, le=180, description="largest random rotation, degrees")
    elastic: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="largest elastic displacement, as a fraction of the crop's shorter side (arXiv 1505.04597)",
    )
    color_jitter: float = Field(
        0.4, ge=0, le=1, description="strength of random brightness, contrast, saturation; 0 is off"
    )
    hue: float = Field(0.0, ge=0, le=0.5, description="largest random shift of hue, as a fraction of the color circle")
    gamma: float = Field(
        0.0, ge=0, le=2, description="volumes: largest logarithm of a random exponent on the intensities"
    )
    bias_field: float = Field(
        0.0,
        ge=0,
        le=2,
        description="volumes: largest logarithm of a smooth random factor on the intensities, as of MR coils",
    )
    low_resolution: float = Field(
        1.0, gt=0, le=1, description="volumes: smallest fraction of the resolution that patches are reduced to"
    )
    blur: float = Field(0.0, ge=0, le=10, description="largest sigma of a random Gaussian blur, pixels")
    noise: float = Field(0.0, ge=0, le=100, description="largest standard deviation of random noise, levels of 0..255")
    class_balanced_crops: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a crop contains a pixel of a class sampled uniformly from those of its image",
    )
    classmix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that half of the classes of another crop are copied (arXiv 2007.07936)",
    )
    cutmix: float = Field(
        0.0, ge=0, le=1, description="probability that a box of another crop is copied (arXiv 1905.04899)"
    )
    erasing: float = Field(
        0.0, ge=0, le=1, description="probability that a box of a crop is erased and ignored (arXiv 1708.04896)"
    )
    rate: float | None = Field(
        None,
        gt=0,
        description="signals: rate in Hz to train at; files of others are resampled; default: from the narrowest class",
    )
    leads: Literal["auto", "each", "together"] = Field(
        "auto",
        description="signals: each lead is a sample of its own, or all together are one; auto: each if each has its own labels",
    )
    stretch: float = Field(0.1, ge=0, le=1, description="signals: largest stretch of time, a fraction; 0 is off")
    gain: float = Field(0.3, ge=0, le=4, description="signals: largest change of each lead's height, a fraction")
    wander: float = Field(
        0.3, ge=0, le=10, description="signals: largest drift of the baseline, in deviations of the lead"
    )
    hum: float = Field(
        0.1, ge=0, le=10, description="signals: largest mains hum of 50 or 60 Hz, in deviations of the lead"
    )
    lead_dropout: float = Field(
        0.1, ge=0, le=1, description="signals: probability that a lead is blank in a crop; one always remains"
    )
    transforms: list[dict[str, Any]] = Field(
        [], description="albumentations transforms, applied before the above: [{name: RandomFog, p: 0.1}]"
    )
    augment: Literal["auto", "cpu", "gpu"] = Field(
        "auto",
        description="cpu: augment in the workers; gpu: whole batches on the training device; auto: gpu with a GPU",
    )

    # the events of signals, in evaluation and service
    min_duration: dict[str, float] | None = Field(
        None,
        description="signals: seconds below which an event is removed, by class, as in P:0.02,QRS:0.03; default: none is",
    )
    max_gap: dict[str, float] | None = Field(
        None,
        description="signals: seconds up to which background within an event is filled, by class; default: none is",
    )

    # the components of volumes, in evaluation and service
    keep_largest: tuple[str, ...] = Field(
        (),
        description="volumes: classes of which only the largest connected component is kept, as in liver,spleen; default: none",
    )
    min_volume: dict[str, float] | None = Field(
        None,
        description="volumes: ml below which a connected component is removed, by class, as in liver:5,spleen:1 (voxels, if the "
        "volumes have no spacing); default: none is",
    )

    # the optimization
    epochs: int | None = Field(
        None, ge=1, description="passes over the training images; default: 40, or as many as the minutes allow"
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="time limit, over all starts of the run; the schedule is shortened to end with it",
    )
    batch: int = Field(8, ge=1, description="images per batch, over all devices")
    accumulate: int = Field(1, ge=1, description="batches per optimizer step; their gradients are averaged")
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="SGD with Nesterov momentum, or AdamW (arXiv 1711.05101)"
    )
    lr: float = Field(0.02, gt=0, description="peak learning rate; not scaled with the batch size")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of kernels; none on norms and biases")
    head_lr: float = Field(1.0, gt=0, description="factor on lr for all but the encoder; 10 suits a pretrained encoder")
    warmup: int = Field(100, ge=0, description="steps over which the learning rate rises linearly")
    schedule: Literal["poly", "cosine", "onecycle", "constant"] = Field(
        "poly",
        description="decay: (1 - progress)^power (arXiv 1506.04579), half a cosine (arXiv 1608.03983), a cosine up over 30% of the "
        "training and down (arXiv 1708.07120), or none",
    )
    power: float = Field(0.9, gt=0, description="exponent of the polynomial decay")
    lr_min: float = Field(
        0.0, ge=0, le=1, description="fraction of the peak learning rate at which poly, cosine and onecycle end"
    )
    loss: str = Field(
        "ce",
        description="ce (cross-entropy), ohem (arXiv 1604.03540), focal (arXiv 1708.02002), dice (arXiv 1606.04797), "
        "tversky (arXiv 1706.05721), lovasz (arXiv 1705.08790), or a sum such as 0.5*ohem+lovasz",
    )
    class_weights: Literal["none", "median", "enet"] = Field(
        "none",
        description="in ce, ohem and focal: equal, median frequency / frequency (arXiv 1411.4734), "
        "1 / ln(1.02 + frequency) (arXiv 1606.02147)",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="in ce and ohem: fraction of the target spread over all classes (arXiv 1512.00567)"
    )
    ohem_threshold: float = Field(
        0.9, gt=0, le=1, description="in ohem: keep pixels whose true class has at most this probability"
    )
    ohem_keep: float = Field(
        1 / 16, ge=0, le=1, description="in ohem: keep at least this fraction of the labeled pixels, the hardest"
    )

    tversky_beta: float = Field(
        0.7, ge=0, le=1, description="in tversky: weight of missed pixels; that of false ones is 1 - this; 0.5 is dice"
    )
    progressive: float = Field(
        0.0, ge=0, le=1, description="fraction of the training, its beginning, on crops of half the resolution"
    )
    grad_clip: float | None = Field(
        None, gt=0, description="largest gradient norm of a step (arXiv 1211.5063); default: no limit"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of averaged weights, which are then the result (arXiv 1803.05407); 0: off",
    )
    freeze_norms: bool = Field(
        False, description="keep the initial statistics of batch norms: for fine-tuning with small batches"
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    monitor: str = Field(
        "miou",
        description="validation metric that chooses the best checkpoint: miou, foreground_miou, pixel_accuracy, mean_dice, "
        "foreground_dice, mean_precision, mean_recall, or of a class iou_, dice_, precision_, recall_, specificity_CLASS",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many validations without a better value of the monitor"
    )

    # the machine
    precision: Literal["auto", "f32", "bf16"] = Field("auto", description="auto: bf16 if it is faster on this machine")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if torch finds one")
    devices: int = Field(1, ge=1, description="GPUs (or processes on a CPU) that share each batch")
    cache_decoded: bool = Field(
        False, description="decode each image once, and keep it uncompressed in the run folder until the training ends"
    )
    workers: int = Field(2, ge=0, description="processes per device that read and augment images")
    sandbox: bool = Field(
        False, description="decode images and masks in child processes with limits: for files of unknown origin"
    )
    deterministic: bool = Field(False, description="the same bits in each run on the same machine; a little slower")
    save_minutes: float = Field(
        10.0, ge=0, description="minutes between saves of last.ckpt within an epoch; 0: after every step"
    )
    tensorboard: bool = Field(
        True, description="also write curves, sample masks and the confusion matrix for TensorBoard"
    )
    kernel_snapshots: bool = Field(
        True, description="save the first layer's kernels in the course of the training, for `maskserve explain`"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, order and augmentation")

    @field_validator("*", mode="before")
    @classmethod
    def _read_none(cls, value: Any, info: ValidationInfo) -> Any:
        """`None`, as `train --settings` prints it, in a setting that may be unset. YAML reads it as text."""
        field = cls.model_fields[info.field_name or ""]
        optional = type(None) in get_args(field.annotation)
        return None if optional and isinstance(value, str) and value.lower() == "none" else value

    @field_validator("channels", "keep_largest", mode="before")
    @classmethod
    def _split_channels(cls, value: Any) -> Any:
        """`channels=nir` is one name, and `nir,red` in YAML is text."""
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("min_duration", "max_gap", "min_volume", mode="before")
    @classmethod
    def _split_by_class(cls, value: Any, info: ValidationInfo) -> Any:
        """`P:0.02,QRS:0.03`, as on the command line. A class's name may hold a colon."""
        if not isinstance(value, str):
            return value
        pairs = [entry.rpartition(":") for entry in value.split(",")]
        if not all(name and number for name, _, number in pairs):
            form = "CLASS:ML, several with commas, as in liver:5,spleen:1"
            if info.field_name != "min_volume":
                form = "CLASS:SECONDS, several with commas, as in P:0.02,QRS:0.03"
            raise ValueError(f"write {form}")
        return {name.strip(): number for name, _, number in pairs}

    @field_validator("min_duration", "max_gap", "min_volume")
    @classmethod
    def _check_by_class(cls, value: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        if value and not all(0 <= number < float("inf") for number in value.values()):
            quantity = (
                "a volume is a number of ml" if info.field_name == "min_volume" else "a duration is a number of seconds"
            )
            raise ValueError(f"{quantity}, 0 or more")
        return value

    @field_validator("crop", mode="before")
    @classmethod
    def _read_crop(cls, value: Any) -> Any:
        """`crop=4096` is one number."""
        return (value,) if isinstance(value, int) else value

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: str) -> str:
        parse_loss(loss)
        return loss

    @field_validator("flip_axes")
    @classmethod
    def _check_flip_axes(cls, axes: str) -> str:
        if axes != "".join(axis for axis in "DHW" if axis in axes):
            raise ValueError(f"expected axes of D, H, W, each once and in this order, and got {quoted(axes)}")
        return axes

    @field_validator("transforms")
    @classmethod
    def _check_transforms(cls, transforms: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not all(isinstance(entry.get("name"), str) for entry in transforms):
            raise ValueError("each transform is a name and its arguments, such as {name: RandomFog, p: 0.1}")
        return transforms

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.crop is not None and len(self.crop) < 3 and min(self.crop) < 32:
            raise ValueError("crop is height,width, each at least 32 pixels; of signals at least 32 time steps")
        if self.crop is not None and len(self.crop) == 3 and min(self.crop) < 2:
            raise ValueError("crop is depth,height,width, each at least 2 voxels")
        if self.batch % self.devices:
            raise ValueError(
                f"batch={self.batch} cannot be divided among devices={self.devices}; set a multiple of {self.devices}"
            )
        if self.sample_range and not self.sample_range[0] < self.sample_range[1]:
            raise ValueError("sample_range is low,high, the first below the second")
        if self.sample_range and self.scaling not in ("auto", "fixed"):
            raise ValueError(
                f"sample_range is for scaling=fixed, not for scaling={self.scaling}; leave one of them out"
            )
        if not 0.05 <= self.scale[0] <= self.scale[1] <= 20:
            raise ValueError("scale is smallest,largest, both between 0.05 and 20")
        return self

    def likely_axes(self) -> Literal["HW", "T", "DHW"]:
        """The axes of the samples as far as the settings tell: by the numbers per axis in crop, strides and kernel."""
        lists = [value for value in (self.strides, self.kernel) if isinstance(value, list)]
        lengths = [len(entry) for value in lists for entry in value if isinstance(entry, list)]
        counts: dict[int, Literal["HW", "T", "DHW"]] = {1: "T", 3: "DHW"}
        return counts.get(next(iter(lengths), len(self.crop or ())), "HW")

    def check_axes(self, axes: str) -> None:
        """Check that every setting that was changed is one of samples of these axes. Raises: ConfigError that names another."""
        for name, possible in AXES_OF_SETTINGS.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            neutral = name == "input" and value == "native"  # what signals and volumes have anyway
            if axes not in possible and value != default and not neutral:
                raise ConfigError(
                    f"The setting {name} is for {' and '.join(AXES[each] for each in possible)}; this data set has {AXES[axes]}: "
                    "leave it out."
                )
        if self.crop is not None and len(self.crop) != len(axes):
            names = {"HW": "height,width", "T": "one number of time steps", "DHW": "depth,height,width"}
            raise ConfigError(
                f"crop={','.join(map(str, self.crop))} is not possible for {AXES[axes]}; give {names[axes]}."
            )

    def limits(self) -> dict[str, float]:
        """The settings that end the training, by name."""
        epochs = self.epochs or (None if self.minutes else DEFAULT_EPOCHS)
        limits = {"epochs": epochs, "minutes": self.minutes, "patience": self.patience}
        return {name: value for name, value in limits.items() if value is not None}
