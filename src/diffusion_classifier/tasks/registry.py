"""The tasks. Hub ids, sizes and licences are as their keepers state them: nothing was downloaded to check them.

Most data sets of the hub are the test sets as CLIP benchmark keeps them: webdataset shards, and beside them the class
names and prompts of CLIP's authors. Presets are of the paper (section 5 and its appendix), with the prompts of its
authors' code; schedules are nested here.
"""

from __future__ import annotations

from ..data.fashion import FASHION, load_sample
from ..data.labelled import LabelledSource
from ..errors import InputError
from . import names
from .base import Preset, Task
from .scenes import noun_names, open_nouns

# Hendrycks et al. 2021, "Natural adversarial examples": the 200 classes, in the order of ImageNet's thousand.
_IMAGENET_A = (
    6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96, 97, 99, 105, 107,
    108, 110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254, 277, 283, 287, 291, 295, 298, 301,
    306, 307, 308, 309, 310, 311, 313, 314, 315, 317, 319, 323, 324, 326, 327, 330, 334, 335, 336, 347, 361, 363,
    372, 378, 386, 397, 400, 401, 402, 404, 407, 411, 416, 417, 420, 425, 428, 430, 437, 438, 445, 456, 457, 461,
    462, 470, 472, 483, 486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557, 561, 562, 569, 572,
    573, 575, 579, 589, 606, 607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668, 677, 682, 684, 687, 701, 704,
    719, 736, 746, 749, 752, 758, 763, 765, 768, 773, 774, 776, 779, 780, 786, 792, 797, 802, 803, 804, 813, 815,
    820, 823, 831, 833, 835, 839, 845, 847, 850, 859, 862, 870, 879, 880, 888, 890, 897, 900, 907, 913, 924, 932,
    933, 934, 937, 943, 945, 947, 951, 954, 956, 957, 959, 971, 972, 980, 981, 984, 986, 987, 988,
)  # fmt: skip
_THOUSAND = tuple(range(1000))
_SHARED = {"missile": ("missile", "projectile"), "sunglasses": ("sunglass", "sunglasses")}
"""Classes 657 and 744, 836 and 837. WordNet 3.0 calls 744 "projectile, missile" and 836 "sunglass"."""

_BLURRY = "a blurry photo of a {}."
_MANY = "staged:20,50,100,500/20,10,5,1"
_IMAGENET = "staged:50,100,500,1000/500,50,10,1"
_DIT = "fixed:250"


def _sample(data: str | None, split: str | None) -> LabelledSource:
    for option, given in (("data", data), ("split", split)):
        if given is not None:
            raise InputError(f"the task fashion-sample has no use for --{option}: its images are in the package")
    samples = load_sample()
    return LabelledSource(
        "fashion-sample",
        FASHION,
        tuple(FASHION.index(sample.label) for sample in samples),
        tuple(str(sample.index) for sample in samples),
        lambda i: samples[i].image,
    )


_ALL = (
    Task(
        "food101", "Food-101", "clip-benchmark/wds_food101", 101, 25_250, "a photo of {}, a type of food.", "accuracy",
        "research and education; images are from Foodspotting",
        "Bossard et al. 2014, Food-101: mining discriminative components with random forests, ECCV",
        class_names=names.FOOD101,
        presets={"paper": Preset(_MANY, accuracy=77.7)},
    ),
    Task(
        "cifar10", "CIFAR-10", "clip-benchmark/wds_vtab-cifar10", 10, 10_000, "a photo of a {}.", "accuracy",
        "none stated",
        "Krizhevsky 2009, Learning multiple layers of features from tiny images",
        class_names=names.CIFAR10,
        presets={"paper": Preset("staged:50,500/5,1", "l1", accuracy=88.5, template=_BLURRY)},
    ),
    Task(
        "cifar100", "CIFAR-100", "clip-benchmark/wds_vtab-cifar100", 100, 10_000, "a photo of a {}.", "accuracy",
        "none stated",
        "Krizhevsky 2009, Learning multiple layers of features from tiny images",
        class_names=names.CIFAR100,
        presets={"paper": Preset(_MANY, "l1", accuracy=67.73, template=_BLURRY)},
        note="Not in the paper: the preset is what its authors gave later for their code.",
    ),
    Task(
        "aircraft", "FGVC Aircraft", "clip-benchmark/wds_fgvc_aircraft", 100, 3_333,
        "a photo of a {}, a type of aircraft.", "mean_per_class",
        "non-commercial research",
        "Maji et al. 2013, Fine-grained visual classification of aircraft",
        class_names=names.AIRCRAFT,
        presets={"paper": Preset(_MANY, accuracy=26.4)},
    ),
    Task(
        "pets", "Oxford-IIIT Pets", "clip-benchmark/wds_vtab-pets", 37, 3_669, "a photo of a {}, a type of pet.",
        "mean_per_class",
        "CC BY-SA 4.0",
        "Parkhi et al. 2012, Cats and dogs, CVPR",
        class_names=names.PETS,
        presets={"paper": Preset("staged:25,250/5,1", "l1", accuracy=87.3, names=names.AUTHORS_PETS)},
    ),
    Task(
        "flowers102", "Flowers102", "clip-benchmark/wds_vtab-flowers", 102, 6_149,
        "a photo of a {}, a type of flower.", "mean_per_class",
        "none stated",
        "Nilsback and Zisserman 2008, Automated flower classification over a large number of classes, ICVGIP",
        class_names=names.FLOWERS102,
        also=names.FLOWERS102_ALSO,
        presets={"paper": Preset(_MANY, "l1", accuracy=66.3)},
    ),
    Task(
        "stl10", "STL-10", "clip-benchmark/wds_stl10", 10, 8_000, "a photo of a {}.", "accuracy",
        "as for ImageNet, from which the images are",
        "Coates et al. 2011, An analysis of single-layer networks in unsupervised feature learning, AISTATS",
        class_names=names.STL10,
        presets={"paper": Preset("staged:100,500/5,1", "l1", accuracy=95.4)},
    ),
    Task(
        "imagenet", "ImageNet, validation", "clip-benchmark/wds_imagenet1k", 1000, 50_000, "a photo of a {}.",
        "accuracy",
        "non-commercial research and education, by agreement",
        "Deng et al. 2009, ImageNet: a large-scale hierarchical image database, CVPR",
        imagenet_ids=_THOUSAND, told_apart=_SHARED,
        presets={
            "paper": Preset(_IMAGENET, num_images=2000, accuracy=61.4),
            "paper-dit": Preset(_DIT, image_size=None, num_images=2000),
        },
        note="The paper says 2,000 images, its authors' commands take 4 per class; which is not known. DiT-XL/2 had "
        "77.5 at 256², 79.1 at 512² (paper-dit).",
    ),
    Task(
        "imagenetv2", "ImageNetV2, matched frequency", "clip-benchmark/wds_imagenetv2", 1000, 10_000,
        "a photo of a {}.", "accuracy",
        "MIT",
        "Recht et al. 2019, Do ImageNet classifiers generalize to ImageNet?, ICML",
        imagenet_ids=_THOUSAND, told_apart=_SHARED,
        presets={"paper-dit": Preset(_DIT, image_size=None, num_images=1000)},
        note="The paper took 1,000 images; which is not known. DiT-XL/2 had 64.6 at 256², 66.7 at 512².",
    ),
    Task(
        "imagenet-a", "ImageNet-A", "clip-benchmark/wds_imagenet-a", 200, 7_500, "a photo of a {}.", "accuracy",
        "MIT",
        "Hendrycks et al. 2021, Natural adversarial examples, CVPR",
        imagenet_ids=_IMAGENET_A,
        presets={"paper-dit": Preset(_DIT, image_size=None, num_images=5000)},
        note="The paper took 5,000 images; which is not known. DiT-XL/2 had 20.0 at 256², 30.2 at 512².",
    ),
    Task(
        "objectnet", "ObjectNet, the 113 classes shared with ImageNet", "clip-benchmark/wds_objectnet", 113, 18_574,
        "a photo of a {}.", "accuracy",
        "CC BY 4.0 with limits: not for training",
        "Barbu et al. 2019, ObjectNet: a large-scale bias-controlled dataset, NeurIPS",
        class_names=names.OBJECTNET,
        also=names.OBJECTNET_ALSO,
        presets={"paper": Preset("staged:50,100,500,1000/25,10,5,1", accuracy=43.4)},
        note="Some classes are several of ImageNet's: models of its thousand classes cannot be evaluated here.",
    ),
    Task(
        "mnist", "MNIST", "ylecun/mnist", 10, 10_000, "a photo of the number: '{}'.", "accuracy",
        "MIT",
        "LeCun et al. 1998, Gradient-based learning applied to document recognition",
        class_names=names.DIGITS,
        renamed=True,
        note="Not in the paper; the prompt is its authors'.",
    ),
    Task(
        "fashion-mnist", "Fashion-MNIST", "zalando-datasets/fashion_mnist", 10, 10_000, "a photo of a {}.",
        "accuracy",
        "MIT",
        "Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        class_names=FASHION,
        renamed=True,
        note="Not in the paper. Also read from a folder of IDX files: --data FOLDER.",
    ),
    Task(
        "fashion-sample", "Fashion-MNIST, 1,000 of its images", "", 10, 1_000, "a photo of a {}.",
        "accuracy",
        "MIT",
        "Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        class_names=FASHION,
        make=_sample,
        note="In the package: needs no network.",
    ),
    Task(
        "scenes-nouns", "Scenes of one thing, ten nouns", "", 10, 1_000, "a {}",
        "accuracy",
        "MIT",
        "Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        class_names=noun_names(),
        make=open_nouns,
        note="Of the 1,000 images in the package; of all 10,000 with --data FOLDER of the IDX files, of "
        "5,000 that the bundled models were not trained on with --split validation, too.",
    ),
)  # fmt: skip

TASKS = {task.name: task for task in _ALL}
