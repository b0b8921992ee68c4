"""What a training run can be told: one flat, frozen model. `training/config_io.py` reads and writes it."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from training.loss_spec import parse_loss


class TrainConfig(BaseModel):
    """Every setting of a run, with its unit; `runs/<name>/config.yaml` holds them as run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the network
    architecture: str = Field("fcn", description="fcn, smp/NAME, torchvision/NAME: `maskserve models` lists them")
    encoder: str = Field(
        "resnet18", description="of segmentation-models-pytorch, timm (tu-NAME), or alexnet (arXiv 1411.4038)"
    )
    weights: str = Field(
        "none", description="start from scratch, from pretrained ones (imagenet), or from a FILE or BUNDLE to fine-tune"
    )
    reset_head: bool = Field(
        False, description="of a FILE's or BUNDLE's weights keep all but the head: for other classes"
    )
    head: Literal["linear", "fcn", "d6", "aspp", "psp"] = Field(
        "fcn",
        description="1x1 alone (arXiv 1411.4038); 3x3 then 1x1; FCN-D6 (mmsegmentation); ASPP (arXiv 1706.05587); "
        "pyramid pooling (arXiv 1612.01105)",
    )
    output_stride: Literal[8, 16, 32] | None = Field(
        None, description="of the encoder, 16 and 8 by dilation (arXiv 1511.07122); default: as in the head's paper"
    )
    skips: Literal["32s", "16s", "8s"] | None = Field(
        None,
        description="finer maps added to the scores (arXiv 1411.4038); default: 8s for linear and fcn, else none, 32s",
    )
    upsampling: Literal["bilinear", "learned"] = Field(
        "bilinear", description="learned: transposed convolutions that start as bilinear (arXiv 1411.4038)"
    )
    aux: bool = Field(False, description="train a second head on the map of stride 16 as well (arXiv 1612.01105)")
    aux_weight: float = Field(0.4, ge=0, le=1, description="of the second head's loss")
    separable: bool = Field(False, description="3x3 kernels of the heads a channel at a time (arXiv 1610.02357)")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the values before the 1x1 classifier that are dropped (Srivastava et al. 2014)",
    )
    init: Literal["kaiming", "xavier"] = Field(
        "kaiming", description="of what starts from scratch: arXiv 1502.01852, or Glorot and Bengio 2010"
    )

    # the images
    format: str = Field("auto", description="of the data set: a name in training/data, or auto to recognise it")
    input: Literal["fit", "native"] = Field("fit", description="bring images to one scale, or keep their pixels")
    side: int | None = Field(
        None, ge=32, description="long side in pixels for fit; default: the training images' median, at most 1024"
    )
    crop: tuple[int, int] | None = Field(
        None, description="height,width of the training crop; default: the fitted image, at most 512, multiples of 32"
    )
    scale: tuple[float, float] = Field((0.5, 2.0), description="smallest,largest random enlargement")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip; 0 where left and right differ")
    vflip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip: microscopes, satellites")
    rotate: float = Field(0.0, ge=0, le=180, description="largest random rotation, degrees")
    elastic: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="largest displacement of an elastic change, as a share of the crop's shorter side (arXiv 1505.04597)",
    )
    color_jitter: float = Field(
        0.4, ge=0, le=1, description="strength of random brightness, contrast, saturation; 0 is off"
    )
    hue: float = Field(0.0, ge=0, le=0.5, description="largest random shift of hue, as a share of the colour circle")
    blur: float = Field(0.0, ge=0, le=10, description="largest sigma of a random Gaussian blur, pixels")
    noise: float = Field(0.0, ge=0, le=100, description="largest standard deviation of random noise, levels of 0..255")
    class_balanced_crops: float = Field(
        0.0, ge=0, le=1, description="probability that a crop is laid on a class drawn evenly from its image's"
    )
    augment: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="where: in the workers, or on whole batches on the training's device"
    )

    # the optimisation
    epochs: int | None = Field(
        None, ge=1, description="passes over the training images; default: 40, or what the minutes hold"
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="of wall clock, over all starts of the run; the schedule ends with them, and so does the training",
    )
    batch: int = Field(8, ge=1, description="images at a time, over all devices")
    accumulate: int = Field(1, ge=1, description="batches whose mean gradients make one step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="with Nesterov momentum, or AdamW (arXiv 1711.05101)")
    lr: float = Field(0.02, gt=0, description="peak learning rate, at the batch size given")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="on kernels; none on norms and biases")
    head_lr: float = Field(1.0, gt=0, description="times lr, for what stands on the encoder; 10 suits a pretrained one")
    warmup: int = Field(100, ge=0, description="steps of linear rise to the learning rate")
    schedule: Literal["poly", "cosine", "constant"] = Field(
        "poly", description="(1 - done)^power (arXiv 1506.04579); half a cosine (arXiv 1608.03983); or no decay"
    )
    power: float = Field(0.9, gt=0, description="of the polynomial decay")
    lr_min: float = Field(0.0, ge=0, le=1, description="share of the peak that poly and cosine end at")
    loss: str = Field(
        "ce",
        description="ce (cross-entropy), ohem (arXiv 1604.03540), focal (arXiv 1708.02002), dice (arXiv 1606.04797), "
        "lovasz (arXiv 1705.08790), or a sum such as 0.5*ohem+lovasz",
    )
    class_weights: Literal["none", "median", "enet"] = Field(
        "none",
        description="of ce, ohem and focal: alike, median frequency over the class's (arXiv 1411.4734), "
        "1 / ln(1.02 + frequency) (arXiv 1606.02147)",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="of ce and ohem: share of the truth dealt to all classes (arXiv 1512.00567)"
    )
    ohem_threshold: float = Field(
        0.9, gt=0, le=1, description="of ohem: pixels whose own class has this probability or less are kept"
    )
    ohem_keep: float = Field(
        1 / 16, ge=0, le=1, description="of ohem: the least share of the labelled pixels kept, the hardest"
    )

    grad_clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient (arXiv 1211.5063); none")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay by step of averaged weights, which are then the result (arXiv 1803.05407)"
    )
    freeze_norms: bool = Field(
        False, description="batch norms keep the statistics that they begin with: fine-tuning by small batches"
    )
    validate_every: int = Field(1, ge=1, description="epochs from one validation to the next")
    patience: int | None = Field(None, ge=1, description="stop after so many validations without a better mIoU")

    # the machine
    precision: Literal["auto", "f32", "bf16"] = Field(
        "auto", description="auto: bf16 where it is quicker on this machine"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where torch sees one")
    devices: int = Field(1, ge=1, description="GPUs (or processes on a CPU) to share each batch among")
    cache_decoded: bool = Field(
        False, description="read each image once, and keep it uncompressed in the run folder until the training ends"
    )
    workers: int = Field(2, ge=0, description="processes that read and augment images, for each device")
    deterministic: bool = Field(False, description="the same bits on each run on the same machine, a little slower")
    save_minutes: float = Field(10.0, ge=0, description="between saves of last.ckpt within an epoch; 0: at every step")
    tensorboard: bool = Field(True, description="also write curves, sample masks and the confusion matrix for it")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and augmentation")

    @field_validator("loss")
    @classmethod
    def _is_a_loss(cls, loss: str) -> str:
        parse_loss(loss)
        return loss

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.crop is not None and min(self.crop) < 32:
            raise ValueError("crop is height,width, each of 32 pixels or more")
        if self.batch % self.devices:
            raise ValueError(
                f"each of {self.devices} devices takes an equal part of the batch, and {self.batch} has none"
            )
        if not 0.05 <= self.scale[0] <= self.scale[1] <= 20:
            raise ValueError("scale is smallest,largest, between 0.05 and 20")
        return self
