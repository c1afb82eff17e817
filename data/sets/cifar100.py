"""CIFAR-100, read by torchvision, which downloads it on first use.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from dataclasses import replace

from args_helper import Config
from data.sets import cifar10 as cifar
from data.sets.torchvision_sets import load_fetched
from data.spec import Source

CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()
)
"""The 100 fine labels, not the 20 coarse ones."""
SPEC = replace(cifar.SPEC, classes=CLASSES, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
FILES = "cifar-100-python.tar.gz, or the folder cifar-100-python that it unpacks to,"


def load(config: Config) -> Source:
    """Read 50,000 training images, of which 5,000 are held out for validation, and 10,000 test images.

    Raises:
        UserError: the data set is not found and cannot be downloaded.
    """
    return load_fetched("CIFAR100", SPEC, config, FILES)
