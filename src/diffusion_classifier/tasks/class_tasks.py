"""Classification tasks. A new task is one more `Task` in the list below.

Hub ids, sizes and licences are those that the maintainers state; no data was downloaded to check them. Most data sets
are CLIP benchmark's copies of the test sets: webdataset shards with the class names and prompts of CLIP's authors.
Presets come from the paper (section 5 and its appendix), with the prompts of its authors' code. Schedules are nested
here.
"""

from __future__ import annotations

from ..data.fashion import FASHION, load_sample
from ..data.labelled import LabelledSource
from . import class_names as names
from .scene_tasks import noun_names, open_nouns
from .task import Preset, Task

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


def _sample() -> LabelledSource:
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
        name="food101",
        title="Food-101",
        source="clip-benchmark/wds_food101",
        num_classes=101,
        num_images=25_250,
        template="a photo of {}, a type of food.",
        metric="accuracy",
        licence="research and education; images are from Foodspotting",
        citation="Bossard et al. 2014, Food-101: mining discriminative components with random forests, ECCV",
        class_names=names.FOOD101,
        presets={"paper": Preset(_MANY, accuracy=77.7)},
    ),
    Task(
        name="cifar10",
        title="CIFAR-10",
        source="clip-benchmark/wds_vtab-cifar10",
        num_classes=10,
        num_images=10_000,
        template="a photo of a {}.",
        metric="accuracy",
        licence="none stated",
        citation="Krizhevsky 2009, Learning multiple layers of features from tiny images",
        class_names=names.CIFAR10,
        presets={"paper": Preset("staged:50,500/5,1", loss="l1", accuracy=88.5, template=_BLURRY)},
    ),
    Task(
        name="cifar100",
        title="CIFAR-100",
        source="clip-benchmark/wds_vtab-cifar100",
        num_classes=100,
        num_images=10_000,
        template="a photo of a {}.",
        metric="accuracy",
        licence="none stated",
        citation="Krizhevsky 2009, Learning multiple layers of features from tiny images",
        class_names=names.CIFAR100,
        presets={"paper": Preset(_MANY, loss="l1", accuracy=67.73, template=_BLURRY)},
        note="Not in the paper: the preset is what its authors gave later for their code.",
    ),
    Task(
        name="aircraft",
        title="FGVC Aircraft",
        source="clip-benchmark/wds_fgvc_aircraft",
        num_classes=100,
        num_images=3_333,
        template="a photo of a {}, a type of aircraft.",
        metric="mean_per_class",
        licence="non-commercial research",
        citation="Maji et al. 2013, Fine-grained visual classification of aircraft",
        class_names=names.AIRCRAFT,
        presets={"paper": Preset(_MANY, accuracy=26.4)},
    ),
    Task(
        name="pets",
        title="Oxford-IIIT Pets",
        source="clip-benchmark/wds_vtab-pets",
        num_classes=37,
        num_images=3_669,
        template="a photo of a {}, a type of pet.",
        metric="mean_per_class",
        licence="CC BY-SA 4.0",
        citation="Parkhi et al. 2012, Cats and dogs, CVPR",
        class_names=names.PETS,
        presets={"paper": Preset("staged:25,250/5,1", loss="l1", accuracy=87.3, names=names.AUTHORS_PETS)},
    ),
    Task(
        name="flowers102",
        title="Flowers102",
        source="clip-benchmark/wds_vtab-flowers",
        num_classes=102,
        num_images=6_149,
        template="a photo of a {}, a type of flower.",
        metric="mean_per_class",
        licence="none stated",
        citation="Nilsback and Zisserman 2008, Automated flower classification over a large number of classes, ICVGIP",
        class_names=names.FLOWERS102,
        also=names.FLOWERS102_ALSO,
        presets={"paper": Preset(_MANY, loss="l1", accuracy=66.3)},
    ),
    Task(
        name="stl10",
        title="STL-10",
        source="clip-benchmark/wds_stl10",
        num_classes=10,
        num_images=8_000,
        template="a photo of a {}.",
        metric="accuracy",
        licence="as for ImageNet, from which the images are",
        citation="Coates et al. 2011, An analysis of single-layer networks in unsupervised feature learning, AISTATS",
        class_names=names.STL10,
        presets={"paper": Preset("staged:100,500/5,1", loss="l1", accuracy=95.4)},
    ),
    Task(
        name="imagenet",
        title="ImageNet, validation",
        source="clip-benchmark/wds_imagenet1k",
        num_classes=1000,
        num_images=50_000,
        template="a photo of a {}.",
        metric="accuracy",
        licence="non-commercial research and education, by agreement",
        citation="Deng et al. 2009, ImageNet: a large-scale hierarchical image database, CVPR",
        imagenet_ids=_THOUSAND,
        told_apart=_SHARED,
        presets={
            "paper": Preset(_IMAGENET, num_images=2000, accuracy=61.4),
            "paper-dit": Preset(_DIT, image_size=None, num_images=2000),
        },
        note="The paper says 2,000 images, its authors' commands take 4 per class; which is not known. DiT-XL/2 had "
        "77.5 at 256², 79.1 at 512² (paper-dit).",
    ),
    Task(
        name="imagenetv2",
        title="ImageNetV2, matched frequency",
        source="clip-benchmark/wds_imagenetv2",
        num_classes=1000,
        num_images=10_000,
        template="a photo of a {}.",
        metric="accuracy",
        licence="MIT",
        citation="Recht et al. 2019, Do ImageNet classifiers generalize to ImageNet?, ICML",
        imagenet_ids=_THOUSAND,
        told_apart=_SHARED,
        presets={"paper-dit": Preset(_DIT, image_size=None, num_images=1000)},
        note="The paper took 1,000 images; which is not known. DiT-XL/2 had 64.6 at 256², 66.7 at 512².",
    ),
    Task(
        name="imagenet-a",
        title="ImageNet-A",
        source="clip-benchmark/wds_imagenet-a",
        num_classes=200,
        num_images=7_500,
        template="a photo of a {}.",
        metric="accuracy",
        licence="MIT",
        citation="Hendrycks et al. 2021, Natural adversarial examples, CVPR",
        imagenet_ids=_IMAGENET_A,
        presets={"paper-dit": Preset(_DIT, image_size=None, num_images=5000)},
        note="The paper took 5,000 images; which is not known. DiT-XL/2 had 20.0 at 256², 30.2 at 512².",
    ),
    Task(
        name="objectnet",
        title="ObjectNet, the 113 classes shared with ImageNet",
        source="clip-benchmark/wds_objectnet",
        num_classes=113,
        num_images=18_574,
        template="a photo of a {}.",
        metric="accuracy",
        licence="CC BY 4.0 with limits: not for training",
        citation="Barbu et al. 2019, ObjectNet: a large-scale bias-controlled dataset, NeurIPS",
        class_names=names.OBJECTNET,
        also=names.OBJECTNET_ALSO,
        presets={"paper": Preset("staged:50,100,500,1000/25,10,5,1", accuracy=43.4)},
        note="Some classes are several of ImageNet's: models of its thousand classes cannot be evaluated here.",
    ),
    Task(
        name="mnist",
        title="MNIST",
        source="ylecun/mnist",
        num_classes=10,
        num_images=10_000,
        template="a photo of the number: '{}'.",
        metric="accuracy",
        licence="MIT",
        citation="LeCun et al. 1998, Gradient-based learning applied to document recognition",
        class_names=names.DIGITS,
        renamed=True,
        note="Not in the paper; the prompt is its authors'.",
    ),
    Task(
        name="fashion-mnist",
        title="Fashion-MNIST",
        source="zalando-datasets/fashion_mnist",
        num_classes=10,
        num_images=10_000,
        template="a photo of a {}.",
        metric="accuracy",
        licence="MIT",
        citation="Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        class_names=FASHION,
        renamed=True,
        note="Not in the paper. Also read from a folder of IDX files: --data FOLDER.",
    ),
    Task(
        name="fashion-sample",
        title="Fashion-MNIST, 1,000 of its images",
        num_classes=10,
        num_images=1_000,
        template="a photo of a {}.",
        metric="accuracy",
        licence="MIT",
        citation="Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        class_names=FASHION,
        open=_sample,
        note="In the package: needs no network.",
    ),
    Task(
        name="scenes-nouns",
        title="Scenes of one thing, ten nouns",
        num_classes=10,
        num_images=1_000,
        template="a {}",
        metric="accuracy",
        licence="MIT",
        citation="Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        class_names=noun_names(),
        open=open_nouns,
        takes=("data", "split"),
        note="Made of the 1,000 images in the package; of all 10,000 with --data FOLDER of the IDX files; of "
        "5,000 that the bundled models were not trained on with --split validation as well.",
    ),
)

TASKS = {task.name: task for task in _ALL}
